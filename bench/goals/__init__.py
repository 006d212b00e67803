"""The goals on a GPU: what they ask, the run that measures them, the table that says which are met.

``python -m bench.goals --out DIR`` measures, stage after stage; see ``bench/README.md``.
"""
