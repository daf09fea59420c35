"""Calls about this machine, who uses it, and whether all is well."""

from __future__ import annotations

from puna.client.transport import Json, Transport, read_health


class MachineCalls(Transport):
    """The machine, its use, its health."""

    def health(self) -> Json:
        """What of the control plane works, its version and address; a part that does not work raises nothing."""
        return self._call("GET", "/health", read=read_health)

    def usage(self, since: str = "30d", until: str = "", by: str = "endpoint", endpoint: str = "") -> Json:
        """Requests and GPU-seconds by `endpoint`, `key`, `day`, `hour`, or several of them with commas."""
        query = {"since": since, "until": until, "by": by, "endpoint": endpoint}
        return self._call("GET", "/usage", params=query)

    def usage_csv(self, since: str = "30d", until: str = "", by: str = "hour,endpoint,key", endpoint: str = "") -> str:
        """The same as a table for spreadsheets."""
        query = {"since": since, "until": until, "by": by, "endpoint": endpoint}
        return "".join(self._stream("/usage.csv", query, lambda reply: reply.iter_text()))

    def machine(
        self,
        model: str = "",
        source: str = "",
        weights_bytes: int = 0,
        requests: int | None = None,
        context: int | None = None,
    ) -> Json:
        """This machine's GPUs, who holds them, and whether a model fits: a published one, a source's, or so many bytes.

        The estimate is for `requests` at once of `context` tokens each.
        """
        query = {"model": model, "source": source, "weights_bytes": weights_bytes}
        query |= {"requests": requests, "context": context}
        return self._call("GET", "/machine", params={key: value for key, value in query.items() if value})
