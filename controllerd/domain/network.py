"""Network: an L2 segment. Tenants' ones are VXLANs; external ones are the provider's, for gateways and floating IPs."""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.domain import check

VNI_MAX = (1 << 24) - 1


@dataclass(frozen=True)
class Network:
    id: str
    name: str
    project_id: str
    shared: bool
    external: bool
    mtu: int  # bytes, as guests are told
    vni: int  # 0 = none: external networks
    created_at: float

    def __post_init__(self) -> None:
        """Errors: InvalidArgument."""
        check.name("name", self.name)

    def visible_to(self, project_id: str) -> bool:
        return self.shared or self.external or self.project_id == project_id
