"""The texts that models learn from. So far: data/names.txt, the default of microgpt.py."""
