"""A leader whose work does not end though its lease has: the process ends all the same."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

from tests.etcd import EtcdCluster, free_port
from tests.torture.process import Process, program, toml

HANG_S = 60.0


async def test_what_is_stuck_does_not_keep_the_process(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "etcd", members=1, tls=True) as etcd:
        process = _bootstrapped(tmp_path, etcd)
        process.start()
        try:
            async with asyncio.timeout(HANG_S):
                while "leading, epoch" not in process.log:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.1)
            etcd.pause(0)
            assert await process.ended(HANG_S) == 1
            assert "the leader's work does not end" in process.log
        finally:
            process.kill()


def _bootstrapped(home: Path, etcd: EtcdCluster) -> Process:
    names = ("api_listen", "agents_listen", "metrics_listen")
    keys: dict[str, object] = {name: f"127.0.0.1:{free_port()}" for name in names}
    keys |= {"node": "c1", "data_dir": f"{home}/data", "tls_dir": f"{home}/tls"}
    cluster: dict[str, object] = {"etcd": etcd.endpoints, "etcd_tls_dir": f"{home}/etcd-tls", "lease_ttl_s": 2}
    (home / "controllerd.toml").write_text(toml(keys, cluster=cluster))
    words = ("--config", f"{home}/controllerd.toml")
    argv = program("controllerd.daemon", *words, "bootstrap", "--admin-env", f"{home}/admin.env")
    subprocess.run(argv, check=True, capture_output=True, timeout=HANG_S)
    assert etcd.tls_dir is not None
    shutil.copytree(etcd.tls_dir, home / "etcd-tls", dirs_exist_ok=True)
    return Process("c1", home, program("tests.torture.stuck", *words))
