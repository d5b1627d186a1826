"""The table of bad inputs: what is spoiled, how, and what a command must answer. See
tools/bad_inputs.py, which runs it.
"""
