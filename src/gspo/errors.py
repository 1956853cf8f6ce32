"""The two errors that a user meets: what was set wrong, and what came in wrong."""


class SettingError(ValueError):
    """A setting that cannot work, said in one sentence. The command line exits with code 2."""


class DataError(ValueError):
    """Prompts, batches, rewards or models that cannot be used, said in one sentence: who, what was
    expected, what came, what to do."""
