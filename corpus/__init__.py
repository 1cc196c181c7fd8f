"""The texts that models learn from: data/names.txt, the default of microgpt.py, or any other.

    sources.py     files, folders, URLs and known names to texts, each with its provenance
    fetch.py       pages by http, politely, and their cache
    html.py        readable text from HTML
    decode.py      bytes to text
    documents.py   texts to documents, and the part of them that is held out
    batches.py     the tokens of a step
    binary.py      tokens on disk, for a text larger than memory
    load.py        the whole way, from texts to tokens
    cache.py       where downloaded and learned things are kept
"""
