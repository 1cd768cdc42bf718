"""IPReservation: addresses that are not assigned automatically; a pod that asks for one by name still gets it."""

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from ipamd.ctl.output import Column, Sheet
from ipamd.ctl.resources.fields import TEXTS
from ipamd.ctl.resources.kind import Kind, Resource, field

_SHOWN = 80
"""Characters of the CIDRs that a row has, as calicoctl's."""


class _IpReservationKind(Kind):
    def bad_spec(self, spec: Mapping[str, Any], stored: Mapping[str, Any] | None) -> Iterator[str]:
        for text in spec.get("reservedCIDRs") or ():
            try:
                ipaddress.ip_network(text, strict=False)
            except ValueError:
                yield f"spec.reservedCIDRs has {text!r}, which is no address and no CIDR; write 10.0.0.1 or 10.0.0.0/30"


def _cidrs(reservation: Resource) -> str:
    text = ",".join(reservation.get("spec", {}).get("reservedCIDRs") or ())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_COLUMNS = (
    Column("NAME", lambda reservation: field(reservation, "metadata", "name")),
    Column("CIDRS", _cidrs, wide=True),
)

IP_RESERVATION = _IpReservationKind(
    "IPReservation",
    ("ipreservations", "reservation", "reservations", "ipreservation"),
    Sheet(_COLUMNS, lambda each: f"ipreservation.projectcalico.org/{field(each, 'metadata', 'name')}", calico=True),
    {"reservedCIDRs": TEXTS},
)
