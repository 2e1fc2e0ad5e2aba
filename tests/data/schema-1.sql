BEGIN TRANSACTION;
CREATE TABLE attempt (job INTEGER NOT NULL, pos INTEGER NOT NULL, attempt INTEGER NOT NULL, worker TEXT, started_at REAL,
    ended_at REAL NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (job, pos, attempt)) WITHOUT ROWID;
INSERT INTO "attempt" VALUES(2,1,1,'w',1.0,2.0,'worker lost');
CREATE TABLE counter (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL);
INSERT INTO "counter" VALUES('queued',1);
INSERT INTO "counter" VALUES('running',1);
INSERT INTO "counter" VALUES('succeeded',1);
INSERT INTO "counter" VALUES('failed',1);
CREATE TABLE job (
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL UNIQUE, once TEXT UNIQUE, name TEXT NOT NULL, user TEXT NOT NULL,
    priority INTEGER NOT NULL, state TEXT NOT NULL, count INTEGER NOT NULL, waiting INTEGER NOT NULL,
    queued INTEGER NOT NULL, running INTEGER NOT NULL, succeeded INTEGER NOT NULL, failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL, spec TEXT NOT NULL, sets TEXT NOT NULL, submitted_at REAL NOT NULL, started_at REAL,
    finished_at REAL, reason TEXT);
INSERT INTO "job" VALUES(1,'00000000000000000000000000000001','key','x.py','ann',0,'succeeded',1,0,0,0,1,0,0,'{"name": "x.py", "user": "ann", "script": {"name": "x.py", "hash": "0000000000000000000000000000000000000000000000000000000000000000"}, "modules": [], "args": [], "args_blob": null, "env": {}, "env_blob": null, "stdin": null, "send": null, "returns": [], "count": 1, "array": null, "lines": null, "grid": null, "max_running": null, "max_fails": null, "priority": 0, "retries": 0, "timeout": null, "grace": 10.0, "cpus": 1, "gpus": 0, "memory": null, "on": [], "resources": {}, "python": null, "requires_python": null, "requirements": null, "if_lost": "rerun", "max_output": 1073741824, "buffered": false, "cold": false, "preload": [], "after": [], "once": null}','{"waiting":[],"queued":[[0,1]],"cancelled":[]}',101.0,1.0,201.0,NULL);
INSERT INTO "job" VALUES(2,'00000000000000000000000000000002',NULL,'x.py','ann',0,'running',2,0,0,1,0,0,0,'{"name": "x.py", "user": "ann", "script": {"name": "x.py", "hash": "0000000000000000000000000000000000000000000000000000000000000000"}, "modules": [], "args": [], "args_blob": null, "env": {}, "env_blob": null, "stdin": null, "send": null, "returns": [], "count": 1, "array": null, "lines": null, "grid": null, "max_running": null, "max_fails": null, "priority": 0, "retries": 0, "timeout": null, "grace": 10.0, "cpus": 1, "gpus": 0, "memory": null, "on": [], "resources": {}, "python": null, "requires_python": null, "requirements": null, "if_lost": "rerun", "max_output": 1073741824, "buffered": false, "cold": false, "preload": [], "after": [], "once": null}','{"waiting":[],"queued":[[0,1]],"cancelled":[]}',102.0,NULL,NULL,NULL);
INSERT INTO "job" VALUES(3,'00000000000000000000000000000003',NULL,'x.py','ann',0,'failed',1,0,0,0,0,1,0,'{"name": "x.py", "user": "ann", "script": {"name": "x.py", "hash": "0000000000000000000000000000000000000000000000000000000000000000"}, "modules": [], "args": [], "args_blob": null, "env": {}, "env_blob": null, "stdin": null, "send": null, "returns": [], "count": 1, "array": null, "lines": null, "grid": null, "max_running": null, "max_fails": null, "priority": 0, "retries": 0, "timeout": null, "grace": 10.0, "cpus": 1, "gpus": 0, "memory": null, "on": [], "resources": {}, "python": null, "requires_python": null, "requirements": null, "if_lost": "rerun", "max_output": 1073741824, "buffered": false, "cold": false, "preload": [], "after": [], "once": null}','{"waiting":[],"queued":[[0,1]],"cancelled":[]}',103.0,NULL,203.0,NULL);
INSERT INTO "job" VALUES(4,'00000000000000000000000000000004',NULL,'x.py','ann',0,'queued',1,0,1,0,0,0,0,'{"name": "x.py", "user": "ann", "script": {"name": "x.py", "hash": "0000000000000000000000000000000000000000000000000000000000000000"}, "modules": [], "args": [], "args_blob": null, "env": {}, "env_blob": null, "stdin": null, "send": null, "returns": [], "count": 1, "array": null, "lines": null, "grid": null, "max_running": null, "max_fails": null, "priority": 0, "retries": 0, "timeout": null, "grace": 10.0, "cpus": 1, "gpus": 0, "memory": null, "on": [], "resources": {}, "python": null, "requires_python": null, "requirements": null, "if_lost": "rerun", "max_output": 1073741824, "buffered": false, "cold": false, "preload": [], "after": [], "once": null}','{"waiting":[],"queued":[[0,1]],"cancelled":[]}',104.0,NULL,NULL,NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value);
INSERT INTO "meta" VALUES('next_id',5);
CREATE TABLE output (job INTEGER NOT NULL, pos INTEGER NOT NULL, out BLOB NOT NULL, err BLOB NOT NULL,
    PRIMARY KEY (job, pos));
INSERT INTO "output" VALUES(1,0,X'6F75740A',X'FF');
CREATE TABLE task (
    job INTEGER NOT NULL, pos INTEGER NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL, worker TEXT,
    started_at REAL, finished_at REAL, exit_code INTEGER, signal INTEGER, reason TEXT, cpu_seconds REAL,
    max_rss_bytes INTEGER, output_bytes INTEGER NOT NULL, error_bytes INTEGER NOT NULL, dropped_bytes INTEGER NOT NULL,
    retries INTEGER NOT NULL, crashes INTEGER NOT NULL, timed_out INTEGER NOT NULL, files TEXT, worker_id TEXT,
    PRIMARY KEY (job, pos)) WITHOUT ROWID;
INSERT INTO "task" VALUES(1,0,'succeeded',1,'w',NULL,2.0,0,NULL,NULL,NULL,NULL,0,0,0,0,0,0,NULL,'id');
INSERT INTO "task" VALUES(2,1,'running',1,'w',NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,0,0,0,0,NULL,'id');
INSERT INTO "task" VALUES(3,0,'failed',1,'w',NULL,3.0,1,NULL,NULL,NULL,NULL,0,0,0,0,0,0,NULL,'id');
CREATE TABLE worker (worker_id TEXT PRIMARY KEY, name TEXT NOT NULL, drained INTEGER NOT NULL, seen_at REAL NOT NULL);
INSERT INTO "worker" VALUES('id','w',1,5.0);
CREATE INDEX job_unfinished ON job(id) WHERE state IN ('waiting', 'queued', 'running');
CREATE INDEX job_state ON job(state, id);
CREATE INDEX job_user ON job(user, id);
CREATE INDEX job_name ON job(name, id);
CREATE INDEX job_submitted ON job(submitted_at);
CREATE INDEX job_finished ON job(finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX task_unfinished ON task(job, pos) WHERE state IN ('queued', 'running');
CREATE INDEX task_failed ON task(job, state, pos) WHERE state IN ('failed', 'cancelled');
CREATE INDEX task_files ON task(files) WHERE files IS NOT NULL;
CREATE TRIGGER job_new AFTER INSERT ON job BEGIN
    INSERT OR IGNORE INTO counter VALUES (new.state, 0);
    UPDATE counter SET jobs = jobs + 1 WHERE state = new.state; END;
CREATE TRIGGER job_changed AFTER UPDATE OF state ON job WHEN old.state <> new.state BEGIN
    INSERT OR IGNORE INTO counter VALUES (new.state, 0);
    UPDATE counter SET jobs = jobs - 1 WHERE state = old.state;
    UPDATE counter SET jobs = jobs + 1 WHERE state = new.state; END;
CREATE TRIGGER job_gone AFTER DELETE ON job BEGIN UPDATE counter SET jobs = jobs - 1 WHERE state = old.state; END;
COMMIT;
