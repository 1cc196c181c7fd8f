"""Settings known from the field, each under a name; any flag overrides its part of a preset."""

_SHAKESPEARE = {"data": ["shakespeare"]}
_GPT_LARGE = {"n_layer": 6, "n_head": 6, "n_embd": 384, "batch_size": 64}

PRESETS = {
    # the file's own model and text
    "names": {},
    # nanoGPT's for a laptop: 1.88 there, at its last step
    "shakespeare-cpu": {**_SHAKESPEARE, "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64,
                        "batch_size": 12, "num_steps": 2000, "optimizer": "muon"},
    # nanoGPT's for a GPU: 1.4697 there, at its best, near step 1750
    "shakespeare-gpu": {**_SHAKESPEARE, **_GPT_LARGE, "block_size": 256, "num_steps": 5000,
                        "dropout": 0.2, "optimizer": "muon"},
    # the size of the models that lectures build by hand
    "lecture-cpu": {**_SHAKESPEARE, "n_layer": 1, "n_head": 1, "n_embd": 65, "block_size": 8,
                    "batch_size": 32, "num_steps": 3000},
    # small enough for --backend matrix on any laptop
    "laptop": {"n_layer": 2, "n_head": 2, "n_embd": 10, "block_size": 12, "batch_size": 8,
               "num_steps": 3000, "dropout": 0.2, "learning_rate": 0.01},
    "long-context": {**_SHAKESPEARE, **_GPT_LARGE, "block_size": 512, "num_steps": 10_000,
                     "optimizer": "adamw", "learning_rate": 1e-4, "schedule": "cosine"},
    "subword-512": {**_SHAKESPEARE, "tokenizer": "pretrained", "vocabulary": "gpt2", "n_embd": 512,
                    "n_head": 8, "n_layer": 6, "block_size": 512, "batch_size": 8,
                    "num_steps": 5000, "optimizer": "adamw", "learning_rate": 3e-3},
    "bpe-prose": {**_SHAKESPEARE, "tokenizer": "bpe", "bpe_merges": 1000, "n_embd": 64,
                  "n_head": 8, "n_layer": 3, "block_size": 128, "batch_size": 32,
                  "num_steps": 10_000},
}
