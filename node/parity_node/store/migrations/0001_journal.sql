CREATE TABLE pin (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE seen (jti TEXT PRIMARY KEY, expires_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX seen_by_expiry ON seen (expires_at);

CREATE TABLE execution (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  task_id TEXT NOT NULL,
  jti TEXT NOT NULL UNIQUE,
  jti_expires_at INTEGER NOT NULL,
  claim_id TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL,
  manifest TEXT NOT NULL,
  manifest_hash TEXT NOT NULL,
  order_hash TEXT NOT NULL,
  reward TEXT NOT NULL,
  phase TEXT NOT NULL,
  lease_id TEXT NOT NULL,
  fence INTEGER NOT NULL,
  ttl_s REAL NOT NULL,
  deadline REAL NOT NULL,
  boot_id TEXT NOT NULL,
  handle TEXT,
  started_at REAL NOT NULL,
  log_read INTEGER NOT NULL,
  log_sent INTEGER NOT NULL
) STRICT;

CREATE TABLE outbox (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  execution_id TEXT NOT NULL,
  body BLOB NOT NULL,
  is_final INTEGER NOT NULL,
  result_path TEXT NOT NULL,
  result_cid TEXT NOT NULL
) STRICT;
