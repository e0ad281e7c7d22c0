"""Configuration of controllerd: /etc/skyrack/controllerd.toml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from controllerd.leadership.lease import LeaseSettings
from daemonkit.config import option, section
from daemonkit.errors import ConfigError


@dataclass(frozen=True)
class SchedulerConfig:
    vcpu_ratio: float = option(4.0, "virtual CPUs given out for each physical thread")
    memory_ratio: float = option(1.0, "memory given out for each MiB of a node")
    disk_ratio: float = option(1.0, "root disk space given out for each GiB of a node")

    def __post_init__(self) -> None:
        for name in ("vcpu_ratio", "memory_ratio", "disk_ratio"):
            if not 0.1 <= getattr(self, name) <= 100:
                raise ConfigError(f"scheduler.{name} must be from 0.1 to 100")


@dataclass(frozen=True)
class AgentsConfig:
    heartbeat_interval_s: float = option(2.0, "how often an agent without other traffic says that it lives")
    silence_max_s: float = option(6.0, "a session without a message for so long is ended")
    lost_after_s: float = option(6.0, "an agent without a session for so long is lost, and its servers UNKNOWN")

    def __post_init__(self) -> None:
        if self.silence_max_s < 2 * self.heartbeat_interval_s:
            raise ConfigError("agents.silence_max_s must be at least twice agents.heartbeat_interval_s")


@dataclass(frozen=True)
class ClusterConfig:
    """Several controllers, one state. Without `etcd` there is one, with its state on its own disk."""

    etcd: list[str] = option([], "host:port of each etcd member; empty = this is the only controller")
    etcd_tls_dir: Path = option(Path("/etc/skyrack/etcd"), "ca.pem, client.pem, client.key for etcd")
    lease_ttl_s: int = option(3, "a leader that does not renew for so long is replaced")
    lease_margin_s: float = option(0.5, "a leader that cannot renew stops so long before its lease ends")
    hold_max_s: float = option(15.0, "a standby holds a call so long while nobody leads")

    def __post_init__(self) -> None:
        LeaseSettings(self.lease_ttl_s, self.lease_margin_s)
        if not 0 <= self.hold_max_s <= 60:
            raise ConfigError("cluster.hold_max_s must be from 0 to 60")


@dataclass(frozen=True)
class ControllerConfig:
    node: str = option("controller", "name of this machine")
    data_dir: Path = option(Path("/var/lib/skyrack/controllerd"), "state, certificate authority")
    tls_dir: Path = option(Path("/etc/skyrack/tls"), "ca.pem, node.pem, node.key")
    api_listen: str = option("0.0.0.0:7700", "public gRPC API, TLS")
    agents_listen: str = option("0.0.0.0:7701", "sessions of agents, mutual TLS")
    metrics_listen: str = option("127.0.0.1:9700", "Prometheus metrics, plain HTTP; empty = none")
    advertise_api: str = option("", "host:port of the API that joining nodes are told; empty = api_listen")
    advertise_agents: str = option("", "host:port of the agent service that nodes are told; empty = agents_listen")
    log_level: str = option("info", "debug, info, warning or error")
    network_mtu: int = option(1450, "MTU of tenant networks in bytes; the underlay's less 50 for VXLAN")
    region: str = option("local", "name of this cloud's availability zone")
    scheduler: SchedulerConfig = section(SchedulerConfig)
    agents: AgentsConfig = section(AgentsConfig)
    cluster: ClusterConfig = section(ClusterConfig)

    def __post_init__(self) -> None:
        if not 576 <= self.network_mtu <= 9000:
            raise ConfigError("network_mtu must be from 576 to 9000")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigError("log_level must be debug, info, warning or error")
