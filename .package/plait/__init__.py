"""plait: raw data to one modality-tagged token stream, and modality-aware models trained on it.

Public names are imported when first used, so that `import plait` and `plait --help` stay fast.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Batch": "plait.pipeline.batch",
    "Loader": "plait.pipeline.loader",
    "Rows": "plait.pipeline.rows",
    "Stream": "plait.pipeline.stream",
    "Vocabulary": "plait.pipeline.vocabulary",
    "load": "plait.models.checkpoint",
    "load_tokenizer": "plait.tokenizers.base",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'plait' has no attribute {name!r}; it has {', '.join(_HOME)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
