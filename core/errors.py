"""The one exception family that the command line prints as a single line."""


class VivavoceError(Exception):
    """Something the user can mend: the message names the thing, the cause and the mend."""


class AudioError(VivavoceError):
    """Audio that cannot be read, written or used."""


class ConfigError(VivavoceError):
    """A configuration with an unknown key, a wrong type or an impossible value."""


class CheckpointError(VivavoceError):
    """A model or voice file that is missing, foreign or does not fit."""


class CorpusError(VivavoceError):
    """A corpus, manifest or label file that cannot be used."""
