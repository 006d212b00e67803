"""Cases of whole training steps."""

# Images and classes: one image, fewer than blocks and more, more than slices of a sum.
LENET5_STEP = [(1, 10), (3, 2), (5, 16), (37, 10)]
