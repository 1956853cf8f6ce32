"""One logger, `gspo`, that is heard without any set-up and gives way to the user's own."""

import logging

logger = logging.getLogger("gspo")


class _UntilConfigured(logging.StreamHandler):
    """Writes plain lines to stderr as long as the root logger has no handler of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


if not logger.handlers:
    handler = _UntilConfigured()
    handler.setFormatter(logging.Formatter("gspo: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
