"""The errors that a user or a sample can cause; each message says what, where, and what to do."""


class PlaitError(ValueError):
    """Base of plait's own errors; the command line prints its message without a traceback."""


class SampleError(PlaitError):
    """One sample cannot be read or tokenized; a shard job sets it aside and goes on."""


class ConfigError(PlaitError):
    """A configuration or a command's options are wrong."""


class ShardError(PlaitError):
    """A stream or one of its shards is damaged or of another format."""


class ResumeError(PlaitError):
    """Saved state does not belong to this run, stream or job; the message names what differs."""
