"""What can go wrong between this node and the Kubernetes API."""


class ApiError(Exception):
    """The API could not be asked, or answered with an error; the text says which and why.

    ``status`` is the HTTP status, 0 if there was no usable answer; ``retry_after`` seconds to wait that the server asks
    for.
    """

    def __init__(self, why: str, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(why)
        self.status = status
        self.retry_after = retry_after


class NonsenseError(ApiError):
    """The API answered what cannot be understood; whether it ever said what was to come next is not known."""
