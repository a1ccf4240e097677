"""The errors that users of the library can meet; the command line prints them as one line."""


class EagleError(Exception):
    """A problem with something the user gave; the message says what was found and what to do."""


class CheckpointError(EagleError):
    """A head or target on disk is malformed, incomplete, unsafe or of an unknown kind."""


class UnsupportedTargetError(EagleError):
    """The target runs, but its trees cannot be verified or its layers cannot be tapped."""


class HubError(EagleError):
    """A model is neither a local folder nor obtainable from the hub."""


class ClusterError(EagleError):
    """A target on several machines cannot be started, or a machine of it was lost."""
