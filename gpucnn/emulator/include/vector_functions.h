// Provided by gpucnn_shim.h.
