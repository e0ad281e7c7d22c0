"""What must not be, is not: foreign and malformed input, lying images, more than there is room for, two of one daemon."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from skyrack.client import errors
from skyrack.client.errors import CloudError, InvalidArgument
from skyrack.client.server import Server, ServerNetwork
from skyrack.client.subnet import AddressPool
from skyrack.client.sync import Cloud
from skyrack.v1 import image_pb2
from tests.e2e.patience import until
from tests.e2e.reflecting import Reflected
from tests.e2e.remains import Picture, until_as_before
from tests.e2e.running_rack import RunningRack
from tests.e2e.tenant import MINI, Tenant, open_account
from tests.storaged import hostile

BLOBS = "/var/lib/skyrack/storaged/images"
NAMES = ["two\nlines", "nul\0", "\x1b[31mred", "bell\a", "", "x" * 256]
CIDRS = ["", "many", "10.1.0.0", "10.1.0.0/33", "10.1.0.1/24", "10.1.0.0/30", "0.0.0.0/0", "300.1.0.0/24", "fd00::/64"]


# ---------------------------------------------------------------- what belongs to somebody else


@pytest.fixture(scope="module")
def stranger(rack: RunningRack, admin: Cloud) -> Iterator[Cloud]:
    _project, _password, cloud = open_account(rack, admin, "stranger")
    yield cloud
    cloud.close()


@pytest.fixture(scope="module")
def owned(rack: RunningRack, admin: Cloud, tenant: Tenant, before: Picture) -> Iterator[dict[str, str]]:
    """One of each thing of the tenant's: request field to id. When all was refused and it is deleted, nothing is left."""
    cloud = tenant.cloud
    server = cloud.servers.wait(tenant.create("owned"), "ACTIVE", deadline_s=60)
    volume = cloud.volumes.create("owned", size_gib=1)
    flavor = cloud.flavors.create("owned", vcpus=1, memory_mib=128, disk_gib=1)
    port = cloud.ports.create("owned", network=tenant.network)
    address = cloud.floating_ips.create(cloud.networks.find("public"))
    event = next(iter(cloud.tasks.list()))
    yield {
        "server_id": server.id, "volume_id": volume.id, "flavor_id": flavor.id, "port_id": port.id,
        "floating_ip_id": address.id, "image_id": tenant.image.id, "network_id": tenant.network.id,
        "subnet_id": tenant.subnet.id, "router_id": tenant.router.id, "security_group_id": tenant.group.id,
        "rule_id": tenant.group.rules[0].id, "keypair_id": tenant.keypair.id, "project_id": tenant.project.id,
        "user_id": cloud.tokens.current().user_id, "task_id": event.id,
    }  # fmt: skip
    tenant.delete([server])
    cloud.volumes.delete(volume)
    cloud.volumes.wait_gone(volume, deadline_s=60)
    cloud.flavors.delete(flavor)
    cloud.ports.delete(port)
    cloud.floating_ips.delete(address)
    until_as_before(rack, admin, before)


@pytest.fixture(scope="module")
def api(rack: RunningRack) -> Iterator[Reflected]:
    credentials = grpc.ssl_channel_credentials(Path(rack.env["SKYRACK_CA"]).read_bytes())
    with grpc.secure_channel(rack.env["SKYRACK_ENDPOINT"], credentials) as channel:
        yield Reflected(channel)


@pytest.fixture(scope="module")
def bearer(rack: RunningRack, admin: Cloud) -> str:
    """The stranger's, a member of another project."""
    _project, password, cloud = open_account(rack, admin, "stranger")
    with cloud:
        return f"Bearer {cloud.tokens.create(user='stranger', password=password).token}"


def naming(api: Reflected, own: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method that gets, changes or deletes one thing by its id, with the ids of `own` in every field that fits."""
    for service in api.services():
        for method in api.methods(service):
            if not service.startswith("skyrack.") or method.name.startswith(("Create", "List", "Watch")):
                continue
            fields = {name: own[name] for name in method.input_type.fields_by_name if name in own}
            if method.name == "UploadImage":
                yield f"{service}/{method.name}", {"begin": {"image_id": own["image_id"]}}
            elif fields:
                yield f"{service}/{method.name}", fields


def test_foreign_things_are_not_found(api: Reflected, bearer: str, owned: dict[str, str], tenant: Tenant) -> None:
    """Whatever is asked of them. What only admins may do is forbidden before anything is looked up."""
    known = (tenant.cloud.servers.get(owned["server_id"]), tenant.cloud.security_groups.get(tenant.group))
    asked = dict(naming(api, owned))
    assert len(asked) > 40
    answers = {method: answer(api, method, request, bearer) for method, request in asked.items()}
    forbidden = {method.partition("/")[2] for method, code in answers.items() if code == "PERMISSION_DENIED"}
    assert forbidden <= {
        "UpdateProject", "DeleteProject", "UpdateUser", "DeleteUser", "GrantRole", "RevokeRole", "UpdateQuota",
    }  # fmt: skip
    assert {method: code for method, code in answers.items() if code not in ("NOT_FOUND", "PERMISSION_DENIED")} == {}
    assert (tenant.cloud.servers.get(owned["server_id"]), tenant.cloud.security_groups.get(tenant.group)) == known


@pytest.mark.parametrize("wrong", [str(uuid.UUID(int=7)), "no-such", "a\nb", "x" * 500, "'; DROP TABLE server; --"])
def test_unknown_things_are_not_found(api: Reflected, bearer: str, owned: dict[str, str], wrong: str) -> None:
    for method, request in naming(api, dict.fromkeys(owned, wrong)):
        assert answer(api, method, request, bearer) in ("NOT_FOUND", "INVALID_ARGUMENT", "PERMISSION_DENIED"), method


def answer(api: Reflected, method: str, request: dict[str, Any], bearer: str) -> str:
    try:
        api.call(method, request, authorization=bearer)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_foreign_things_cannot_be_built_upon(stranger: Cloud, owned: dict[str, str], tenant: Tenant) -> None:
    flavor, image = stranger.flavors.find("m1.nano"), tenant.image
    public = stranger.networks.find("public")
    attempts: list[Callable[[], Any]] = [
        lambda: stranger.servers.create("x", flavor=flavor, image=image),
        lambda: stranger.subnets.create("x", network=tenant.network, cidr="10.9.0.0/24"),
        lambda: stranger.ports.create(network=tenant.network),
        lambda: stranger.floating_ips.create(public, server=owned["server_id"]),
        lambda: stranger.floating_ips.create(public, port=owned["port_id"]),
        lambda: stranger.volumes.create("x", size_gib=1, image=image),
        lambda: stranger.security_groups.add_rule(tenant.group, protocol="tcp"),
    ]
    for attempt in attempts:
        with pytest.raises(errors.NotFound):
            attempt()


# ---------------------------------------------------------------- what is malformed


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names(tenant: Tenant, name: str) -> None:
    cloud = tenant.cloud
    creates: list[Callable[[], Any]] = [
        lambda: tenant.create(name),
        lambda: cloud.volumes.create(name, size_gib=1),
        lambda: cloud.networks.create(name),
        lambda: cloud.routers.create(name),
        lambda: cloud.images.create(name),
        lambda: cloud.flavors.create(name, vcpus=1, memory_mib=128, disk_gib=1),
        lambda: cloud.security_groups.create(name),
        lambda: cloud.keypairs.create(name, public_key=tenant.keypair.public_key),
    ]
    for create in creates:
        with pytest.raises(InvalidArgument) as refusal:
            create()
        assert refusal.value.field == "name"
        assert refusal.value.message.isprintable()


@pytest.mark.parametrize("cidr", CIDRS)
def test_cidrs(tenant: Tenant, cidr: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        tenant.cloud.subnets.create("wrong", network=tenant.network, cidr=cidr)
    assert refusal.value.field == "cidr"


def test_overlapping_cidrs(tenant: Tenant) -> None:
    cloud = tenant.cloud
    for cidr in ("192.168.10.0/24", "192.168.10.128/25", "192.168.0.0/16"):
        with pytest.raises(CloudError) as refusal:
            cloud.subnets.create("wrong", network=tenant.network, cidr=cidr)
        assert "192.168.10.0/24" in refusal.value.message
    # on another network they may be the same, until one router is to join both
    twin = cloud.networks.create("twin")
    subnet = cloud.subnets.create("twin", network=twin, cidr="192.168.10.0/24")
    with pytest.raises(CloudError) as refusal:
        cloud.routers.add_subnet(tenant.router, subnet)
    assert "overlaps" in refusal.value.message
    cloud.networks.delete(twin)


def test_addresses_outside_of_their_subnet(tenant: Tenant) -> None:
    subnets = tenant.cloud.subnets
    with pytest.raises(InvalidArgument):
        subnets.create("wrong", network=tenant.network, cidr="10.2.0.0/24", gateway_ip="10.3.0.1")
    with pytest.raises(InvalidArgument):
        pool = AddressPool("10.2.0.10", "10.3.0.20")
        subnets.create("wrong", network=tenant.network, cidr="10.2.0.0/24", pools=[pool])
    for ip in ("10.0.0.5", "192.168.11.1", "192.168.10.0", "192.168.10.255", "127.0.0.1", "somewhere"):
        with pytest.raises(CloudError) as refusal:
            tenant.create("wrong", networks=[ServerNetwork(network_id=tenant.network.id, fixed_ip=ip)])
        assert isinstance(refusal.value, InvalidArgument), refusal.value
    assert list(tenant.cloud.servers.list(name="wrong")) == []


# ---------------------------------------------------------------- more than there is


def test_flavor_that_fits_no_node_says_why(tenant: Tenant, admin: Cloud) -> None:
    cloud = tenant.cloud
    admin.quotas.update(tenant.project, {"memory_mib": -1})
    flavor = cloud.flavors.create("giant", vcpus=2, memory_mib=1 << 20, disk_gib=1)
    on_it = [ServerNetwork(network_id=tenant.network.id)]
    server = cloud.servers.create("giant", flavor=flavor, image=tenant.image, networks=on_it)
    with pytest.raises(errors.ResourceFailed) as failed:
        cloud.servers.wait(server, "ACTIVE", deadline_s=60)
    assert failed.value.fault_reason == "NO_VALID_HOST"
    told = f"{failed.value} {failed.value.details}"
    assert "memory" in told and "2" in told and "closest" in told, told
    assert not any(node in told for node in ("k1", "k2")), "where it failed is not the tenant's business"
    tenant.delete([server])
    cloud.flavors.delete(flavor)
    admin.quotas.update(tenant.project, {"memory_mib": 51200})


def test_quota_holds_against_parallel_creates(tenant: Tenant, admin: Cloud) -> None:
    held = next(item.in_use for item in tenant.cloud.quotas.get().items if item.resource == "servers")
    admin.quotas.update(tenant.project, {"servers": held + 3})

    def create(number: int) -> Server | None:
        try:
            return tenant.create(f"many-{number}")
        except errors.QuotaExceeded as error:
            assert error.metadata["resource"] == "servers"
            return None

    try:
        with ThreadPoolExecutor(15) as pool:
            made = [server for server in pool.map(create, range(15)) if server is not None]
        assert len(made) == 3
        assert len([s for s in tenant.cloud.servers.list() if s.name.startswith("many-")]) == 3
        tenant.delete(made)
    finally:
        admin.quotas.update(tenant.project, {"servers": 10})


# ---------------------------------------------------------------- images


def stored(rack: RunningRack) -> str:
    return rack.exec("s1", "find", BLOBS, "-type", "f", "-not", "-name", ".*")


def test_images_that_are_not_what_they_say(tenant: Tenant, rack: RunningRack, tmp_path: Path) -> None:
    """A host file behind a qcow2 would be the end of everybody's secrets. (The whole corpus: tests/storaged.)"""
    images, known = tenant.cloud.images, stored(rack)
    told = {"backing file", "data file", "qcow2 as raw", "raw as qcow2", "vmdk as raw", "truncated in the data"}
    corpus = {name: (kind, content) for name, kind, content in hostile.corpus(tmp_path) if name in told}
    assert set(corpus) == told
    for name, (kind, content) in corpus.items():
        path = tmp_path / "upload"
        path.write_bytes(content)
        image = images.create(name, format=kind)
        with pytest.raises(InvalidArgument):
            images.upload(image, path)
        assert images.get(image).state in ("QUEUED", "ERROR"), name
        with pytest.raises(CloudError):
            tenant.cloud.servers.create("wrong", flavor=tenant.flavor, image=image)
        images.delete(image)
    assert stored(rack) == known


def test_upload_cut_in_the_middle(tenant: Tenant, rack: RunningRack) -> None:
    images, known = tenant.cloud.images, stored(rack)
    image = images.create("cut", format="qcow2")
    token = tenant.cloud.tokens.create(user="tenant", password=tenant.password).token
    credentials = grpc.ssl_channel_credentials(Path(rack.env["SKYRACK_CA"]).read_bytes())
    with grpc.secure_channel(rack.env["SKYRACK_ENDPOINT"], credentials) as channel:

        def half() -> Iterator[image_pb2.UploadImageRequest]:
            yield image_pb2.UploadImageRequest(begin=image_pb2.UploadImageBegin(image_id=image.id))
            yield image_pb2.UploadImageRequest(chunk=MINI.read_bytes()[: 1 << 20])
            until(lambda: images.get(image).state == "SAVING", "the upload has begun")
            call.cancel()

        upload = channel.stream_unary(
            "/skyrack.v1.ImageService/UploadImage",
            request_serializer=image_pb2.UploadImageRequest.SerializeToString,
            response_deserializer=image_pb2.Image.FromString,
        )
        call = upload.future(half(), metadata=(("authorization", f"Bearer {token}"),))
        with pytest.raises(grpc.FutureCancelledError):
            call.result()
    until(lambda: images.get(image).state == "QUEUED", "it is as if nothing was sent", limit_s=60)
    until(lambda: stored(rack) == known, "nothing is kept", limit_s=60)
    assert images.upload(image, MINI).state == "ACTIVE", "and it can be sent again"
    images.delete(image)


def test_full_disk_of_the_image_store(tenant: Tenant, rack: RunningRack, tmp_path: Path) -> None:
    """The store keeps 1 GiB free: this one has 8 MiB more than that, the image 16."""
    images, known = tenant.cloud.images, stored(rack)
    image = images.create("too much", format="raw")
    rack.exec("s1", "mount", "-t", "tmpfs", "-o", "size=1032m", "full", BLOBS)
    try:
        rack.exec("s1", "mkdir", f"{BLOBS}/incoming", f"{BLOBS}/blobs")
        with pytest.raises(errors.OutOfSpace):
            images.upload(image, make_raw(tmp_path))
        assert stored(rack) == ""
    finally:
        rack.exec("s1", "umount", "--lazy", BLOBS)
    assert images.get(image).state in ("QUEUED", "ERROR")
    assert stored(rack) == known
    assert images.upload(image, make_raw(tmp_path)).state == "ACTIVE", "with room, it goes in"
    images.delete(image)


def make_raw(directory: Path) -> Path:
    """16 MiB that nobody has uploaded before, and that are no other format."""
    path = directory / "disk.raw"
    path.write_bytes(b"\0" * 1024 + uuid.uuid4().bytes + b"\0" * (16 << 20))
    return path


# ---------------------------------------------------------------- two of one daemon


@pytest.mark.parametrize(
    ("node", "daemon"), [("c1", "controllerd"), ("n1", "networkd"), ("k1", "computed"), ("s1", "storaged")]
)
def test_second_daemon_on_a_data_directory_refuses(rack: RunningRack, node: str, daemon: str) -> None:
    known = rack.unit(node, daemon)["pid"]
    program = str(Path(sys.executable).parent / f"skyrack-{daemon}")
    argv = rack.enter(node, program, "--config", f"/etc/skyrack/{daemon}.toml")
    second = subprocess.run(argv, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert second.returncode != 0
    assert "in use" in second.stderr + second.stdout
    unit = rack.unit(node, daemon)
    assert (unit["pid"], unit["state"]) == (known, "running")
