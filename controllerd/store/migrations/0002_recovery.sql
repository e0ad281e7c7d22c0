-- readable from schema 1
-- What nodes report that the store does not have there: guests, volumes, routers that nobody owns. `observed_at`: since when.
CREATE TABLE foreign_object (
  node_id TEXT NOT NULL, kind TEXT NOT NULL, object_id TEXT NOT NULL, observed_state TEXT NOT NULL, observed_at REAL NOT NULL,
  PRIMARY KEY (node_id, kind, object_id)
) WITHOUT ROWID;
CREATE INDEX foreign_object_id ON foreign_object(object_id);

-- The last restore of this state from a backup; no row where there was none. `released_at`: nodes are told what to do again.
-- `approved_at`: an operator lets go of what nobody owns and was reported by then. 0 = not yet.
CREATE TABLE restore (
  one INTEGER PRIMARY KEY, backup_at REAL NOT NULL, restored_at REAL NOT NULL, approved_at REAL NOT NULL, released_at REAL NOT NULL
);

-- Agents that are told nothing: what they do stays as it is until it is known what they do. `observed_at`: of their first whole
-- report; `compared_at`: when the store was made to fit it. 0 = not yet.
CREATE TABLE hold (
  node_id TEXT NOT NULL, kind TEXT NOT NULL, since REAL NOT NULL, observed_at REAL NOT NULL, compared_at REAL NOT NULL,
  PRIMARY KEY (node_id, kind)
) WITHOUT ROWID;

-- What became of what was restored, each decided once.
CREATE TABLE finding (
  resource_id TEXT PRIMARY KEY, resource_kind TEXT NOT NULL, node_id TEXT NOT NULL,
  outcome TEXT NOT NULL,                      -- adopted missing
  found_at REAL NOT NULL
) WITHOUT ROWID;
