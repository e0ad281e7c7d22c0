-- Every table has a declared primary key (changesets need one). Times are seconds since 1970 UTC (REAL); booleans 0/1;
-- lists and maps are JSON. A column is written by one writer: columns named observed_* by agents' reports, all others by
-- tenants' calls and tasks.

CREATE TABLE project (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, description TEXT NOT NULL, enabled INTEGER NOT NULL, created_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE user (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, email TEXT NOT NULL, password_hash TEXT NOT NULL,
  enabled INTEGER NOT NULL, created_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE role_assignment (
  user_id TEXT NOT NULL REFERENCES user(id), project_id TEXT NOT NULL REFERENCES project(id), role TEXT NOT NULL,
  PRIMARY KEY (user_id, project_id, role)
) WITHOUT ROWID;
CREATE INDEX role_assignment_project ON role_assignment(project_id);

CREATE TABLE token (
  hash TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES user(id), project_id TEXT NOT NULL REFERENCES project(id),
  created_at REAL NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX token_user ON token(user_id);
CREATE INDEX token_expiry ON token(expires_at);

CREATE TABLE quota_limit (project_id TEXT NOT NULL, resource TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (project_id, resource)) WITHOUT ROWID;

CREATE TABLE idempotency (
  project_id TEXT NOT NULL, user_id TEXT NOT NULL, key TEXT NOT NULL, method TEXT NOT NULL, fingerprint TEXT NOT NULL,
  resource_id TEXT NOT NULL, created_at REAL NOT NULL, PRIMARY KEY (project_id, user_id, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_created ON idempotency(created_at);

CREATE TABLE keypair (
  id TEXT PRIMARY KEY, user_id TEXT NOT NULL, name TEXT NOT NULL, public_key TEXT NOT NULL, fingerprint TEXT NOT NULL,
  created_at REAL NOT NULL, UNIQUE (user_id, name)
) WITHOUT ROWID;

CREATE TABLE flavor (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, project_id TEXT NOT NULL, vcpus INTEGER NOT NULL, memory_mib INTEGER NOT NULL,
  disk_gib INTEGER NOT NULL, description TEXT NOT NULL, created_at REAL NOT NULL, UNIQUE (project_id, name)
) WITHOUT ROWID;

-- ---------------------------------------------------------------- nodes

CREATE TABLE node (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, roles TEXT NOT NULL, enabled INTEGER NOT NULL,
  certificate_serial TEXT NOT NULL, joined_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE join_token (
  hash TEXT PRIMARY KEY, node_name TEXT NOT NULL, roles TEXT NOT NULL, expires_at REAL NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;

-- One row an agent process kind of a node. `connected` and `lost_at` are kept by the sessions and the lost-node reconciler.
CREATE TABLE agent (
  node_id TEXT NOT NULL REFERENCES node(id), kind TEXT NOT NULL, connected INTEGER NOT NULL, last_seen_at REAL NOT NULL,
  lost INTEGER NOT NULL, version TEXT NOT NULL, boot_id TEXT NOT NULL, inventory TEXT NOT NULL,
  PRIMARY KEY (node_id, kind)
) WITHOUT ROWID;

-- Things a node must still remove although the resource is gone (its node was away when it was deleted).
CREATE TABLE tombstone (
  node_id TEXT NOT NULL, kind TEXT NOT NULL, object_id TEXT NOT NULL, vcpus INTEGER NOT NULL, memory_mib INTEGER NOT NULL,
  disk_gib INTEGER NOT NULL, created_at REAL NOT NULL, PRIMARY KEY (node_id, kind, object_id)
) WITHOUT ROWID;

CREATE TABLE telemetry_cursor (
  node_id TEXT NOT NULL, incarnation TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (node_id, incarnation)
) WITHOUT ROWID;

-- One-shot actions for agents; the result comes back by report.
CREATE TABLE agent_task (
  id TEXT PRIMARY KEY, node_id TEXT NOT NULL, agent_kind TEXT NOT NULL, body BLOB NOT NULL, created_at REAL NOT NULL,
  deadline REAL NOT NULL, ended INTEGER NOT NULL, ok INTEGER NOT NULL, reason TEXT NOT NULL, fault TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX agent_task_node ON agent_task(node_id, agent_kind, ended);

-- ---------------------------------------------------------------- tasks and events

CREATE TABLE task (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, project_id TEXT NOT NULL, resource_kind TEXT NOT NULL, resource_id TEXT NOT NULL,
  args TEXT NOT NULL, state TEXT NOT NULL, step INTEGER NOT NULL, entered INTEGER NOT NULL, step_times TEXT NOT NULL,
  fault_reason TEXT NOT NULL, fault_message TEXT NOT NULL, fault_details TEXT NOT NULL,
  created_at REAL NOT NULL, deadline REAL NOT NULL, ended_at REAL NOT NULL, request_id TEXT NOT NULL, user_id TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX task_resource ON task(resource_id, created_at);
CREATE INDEX task_project ON task(project_id, created_at);
CREATE INDEX task_unfinished ON task(state) WHERE state IN ('RUNNING', 'UNWINDING');

CREATE TABLE event (
  seq INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, project_id TEXT NOT NULL, resource_kind TEXT NOT NULL,
  resource_id TEXT NOT NULL, message TEXT NOT NULL, request_id TEXT NOT NULL, user_id TEXT NOT NULL, data TEXT NOT NULL
);
CREATE INDEX event_project ON event(project_id, seq);
CREATE INDEX event_resource ON event(resource_id, seq);
CREATE INDEX event_request ON event(request_id);

-- ---------------------------------------------------------------- images, servers, volumes

CREATE TABLE image (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, project_id TEXT NOT NULL, public INTEGER NOT NULL, state TEXT NOT NULL,
  format TEXT NOT NULL, size_bytes INTEGER NOT NULL, virtual_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
  min_disk_gib INTEGER NOT NULL, min_memory_mib INTEGER NOT NULL, fault_reason TEXT NOT NULL, fault_message TEXT NOT NULL,
  properties TEXT NOT NULL, created_at REAL NOT NULL, md5 TEXT NOT NULL, sha512 TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX image_project ON image(project_id, created_at);
CREATE INDEX image_sha256 ON image(sha256);

-- Which storage node holds which content. Kept while any image, server or volume names it.
CREATE TABLE blob (
  sha256 TEXT NOT NULL, node_id TEXT NOT NULL, size_bytes INTEGER NOT NULL, created_at REAL NOT NULL,
  PRIMARY KEY (sha256, node_id)
) WITHOUT ROWID;

CREATE TABLE server (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, project_id TEXT NOT NULL, user_id TEXT NOT NULL,
  state TEXT NOT NULL,                        -- BUILD ACTIVE STOPPED STARTING STOPPING REBOOTING DELETING ERROR
  flavor_id TEXT NOT NULL, flavor_name TEXT NOT NULL, vcpus INTEGER NOT NULL, memory_mib INTEGER NOT NULL, disk_gib INTEGER NOT NULL,
  image_id TEXT NOT NULL, image_sha256 TEXT NOT NULL, image_format TEXT NOT NULL, image_size_bytes INTEGER NOT NULL, image_virtual_bytes INTEGER NOT NULL,
  keypair_name TEXT NOT NULL, public_key TEXT NOT NULL, metadata TEXT NOT NULL, config_drive INTEGER NOT NULL,
  placement TEXT NOT NULL,                    -- hints: {"node": name, "different_node_than": server id}
  node_id TEXT NOT NULL,                      -- '' until placed
  power TEXT NOT NULL,                        -- what its node is told: '' PREPARED RUNNING STOPPED ABSENT
  fault_reason TEXT NOT NULL, fault_message TEXT NOT NULL, fault_details TEXT NOT NULL,
  created_at REAL NOT NULL, updated_at REAL NOT NULL, launched_at REAL NOT NULL,
  observed_state TEXT NOT NULL,               -- '' PENDING READY RUNNING STOPPED PAUSED FAILED GONE
  observed_fault TEXT NOT NULL, observed_attached TEXT NOT NULL, observed_at REAL NOT NULL, observed_milestones TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX server_project ON server(project_id, created_at, id);
CREATE INDEX server_quota ON server(project_id, vcpus, memory_mib);
CREATE INDEX server_node ON server(node_id);
CREATE INDEX server_image ON server(image_sha256);

-- Apart from the server's row, which is read all the time: up to 64 KiB.
CREATE TABLE user_data (server_id TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;

-- Resources of a node held for a server.
CREATE TABLE claim (
  server_id TEXT PRIMARY KEY, node_id TEXT NOT NULL, vcpus INTEGER NOT NULL, memory_mib INTEGER NOT NULL, disk_gib INTEGER NOT NULL,
  created_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX claim_node ON claim(node_id, vcpus, memory_mib, disk_gib);

CREATE TABLE volume (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, project_id TEXT NOT NULL, size_gib INTEGER NOT NULL,
  state TEXT NOT NULL,                        -- CREATING AVAILABLE DELETING ERROR (in use: there is an attachment)
  image_id TEXT NOT NULL, image_sha256 TEXT NOT NULL, image_format TEXT NOT NULL, image_size_bytes INTEGER NOT NULL, image_virtual_bytes INTEGER NOT NULL,
  node_id TEXT NOT NULL, absent INTEGER NOT NULL,
  fault_reason TEXT NOT NULL, fault_message TEXT NOT NULL, created_at REAL NOT NULL,
  observed_state TEXT NOT NULL, observed_fault TEXT NOT NULL, observed_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX volume_project ON volume(project_id, created_at, id);
CREATE INDEX volume_node ON volume(node_id);

-- A volume has at most one attachment: the unique index is the one-writer rule.
CREATE TABLE attachment (
  id TEXT PRIMARY KEY, volume_id TEXT NOT NULL UNIQUE, server_id TEXT NOT NULL, project_id TEXT NOT NULL, device TEXT NOT NULL,
  export_name TEXT NOT NULL,
  state TEXT NOT NULL,                        -- ATTACHING ATTACHED DETACHING
  exported INTEGER NOT NULL,                  -- desired: the storage node offers it
  connected INTEGER NOT NULL,                 -- desired: the guest has the disk
  created_at REAL NOT NULL,
  observed_export TEXT NOT NULL, observed_fault TEXT NOT NULL,
  UNIQUE (server_id, device)
) WITHOUT ROWID;

-- ---------------------------------------------------------------- networks

CREATE TABLE network (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, project_id TEXT NOT NULL, shared INTEGER NOT NULL, external INTEGER NOT NULL,
  mtu INTEGER NOT NULL, vni INTEGER NOT NULL, created_at REAL NOT NULL   -- vni 0: none
) WITHOUT ROWID;
CREATE UNIQUE INDEX network_vni ON network(vni) WHERE vni != 0;
CREATE INDEX network_project ON network(project_id, created_at, id);

CREATE TABLE subnet (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, project_id TEXT NOT NULL, network_id TEXT NOT NULL REFERENCES network(id), cidr TEXT NOT NULL,
  gateway_ip TEXT NOT NULL, dhcp INTEGER NOT NULL, pools TEXT NOT NULL, dns_servers TEXT NOT NULL, routes TEXT NOT NULL,
  created_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX subnet_network ON subnet(network_id);
CREATE INDEX subnet_project ON subnet(project_id, created_at, id);

CREATE TABLE port (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, project_id TEXT NOT NULL, network_id TEXT NOT NULL REFERENCES network(id), mac TEXT NOT NULL,
  port_security INTEGER NOT NULL,
  purpose TEXT NOT NULL,                      -- '' server router_interface router_gateway floating_ip dhcp
  server_id TEXT NOT NULL, router_id TEXT NOT NULL,
  made_for_server INTEGER NOT NULL,           -- made by CreateServer: goes with the server
  position INTEGER NOT NULL,                  -- order of the server's interfaces
  node_id TEXT NOT NULL,                      -- where it is bound; '' = nowhere
  created_at REAL NOT NULL,
  observed_state TEXT NOT NULL, observed_fault TEXT NOT NULL,
  UNIQUE (network_id, mac)
) WITHOUT ROWID;
CREATE INDEX port_project ON port(project_id, created_at, id);
CREATE INDEX port_server ON port(server_id);
CREATE INDEX port_router ON port(router_id);
CREATE INDEX port_node ON port(node_id, network_id);
CREATE INDEX port_network ON port(network_id, node_id);

-- Addresses taken. ip_number orders and finds free ones. The primary key is the rule that an address has one owner.
CREATE TABLE address (
  subnet_id TEXT NOT NULL REFERENCES subnet(id), ip_number INTEGER NOT NULL, ip TEXT NOT NULL, port_id TEXT NOT NULL,
  PRIMARY KEY (subnet_id, ip_number)
) WITHOUT ROWID;
CREATE INDEX address_port ON address(port_id);

CREATE TABLE router (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, project_id TEXT NOT NULL, external_network_id TEXT NOT NULL, snat INTEGER NOT NULL,
  routes TEXT NOT NULL, node_id TEXT NOT NULL, created_at REAL NOT NULL, observed_state TEXT NOT NULL, observed_fault TEXT NOT NULL,
  observed_floating_ips TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX router_project ON router(project_id, created_at, id);
CREATE INDEX router_node ON router(node_id);

CREATE TABLE floating_ip (
  id TEXT PRIMARY KEY, project_id TEXT NOT NULL, external_network_id TEXT NOT NULL, subnet_id TEXT NOT NULL, ip TEXT NOT NULL,
  holder_port_id TEXT NOT NULL,               -- the port on the external network that owns the address
  port_id TEXT NOT NULL, fixed_ip TEXT NOT NULL, router_id TEXT NOT NULL, created_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX floating_ip_project ON floating_ip(project_id, created_at, id);
CREATE UNIQUE INDEX floating_ip_port ON floating_ip(port_id, fixed_ip) WHERE port_id != '';
CREATE INDEX floating_ip_router ON floating_ip(router_id);

CREATE TABLE security_group (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, project_id TEXT NOT NULL, description TEXT NOT NULL, accounts TEXT NOT NULL, created_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX security_group_project ON security_group(project_id, created_at, id);

CREATE TABLE security_group_rule (
  id TEXT PRIMARY KEY, security_group_id TEXT NOT NULL REFERENCES security_group(id), project_id TEXT NOT NULL, ingress INTEGER NOT NULL, ipv6 INTEGER NOT NULL,
  protocol TEXT NOT NULL, port_min INTEGER NOT NULL, port_max INTEGER NOT NULL, remote_cidr TEXT NOT NULL, remote_group_id TEXT NOT NULL,
  description TEXT NOT NULL, created_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX security_group_rule_group ON security_group_rule(security_group_id);
CREATE INDEX security_group_rule_remote ON security_group_rule(remote_group_id);

CREATE TABLE port_security_group (
  port_id TEXT NOT NULL REFERENCES port(id), security_group_id TEXT NOT NULL REFERENCES security_group(id), PRIMARY KEY (port_id, security_group_id)
) WITHOUT ROWID;
CREATE INDEX port_security_group_group ON port_security_group(security_group_id);

-- ---------------------------------------------------------------- usage

-- From launch to deletion, with the size it had.
CREATE TABLE usage_interval (
  id TEXT PRIMARY KEY, server_id TEXT NOT NULL, server_name TEXT NOT NULL, project_id TEXT NOT NULL, vcpus INTEGER NOT NULL,
  memory_mib INTEGER NOT NULL, disk_gib INTEGER NOT NULL, started_at REAL NOT NULL, ended_at REAL NOT NULL   -- 0 = still running
) WITHOUT ROWID;
CREATE INDEX usage_interval_project ON usage_interval(project_id, started_at);
CREATE INDEX usage_interval_server ON usage_interval(server_id);

-- Totals of a server's counters; last_* are the raw counters of the last sample (they fall at a guest's restart).
CREATE TABLE usage_counter (
  server_id TEXT PRIMARY KEY, project_id TEXT NOT NULL, cpu_ns INTEGER NOT NULL, rx_bytes INTEGER NOT NULL, tx_bytes INTEGER NOT NULL,
  read_bytes INTEGER NOT NULL, write_bytes INTEGER NOT NULL, memory_kib INTEGER NOT NULL, last TEXT NOT NULL, sampled_at REAL NOT NULL
) WITHOUT ROWID;
