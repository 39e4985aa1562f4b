BEGIN TRANSACTION;
CREATE TABLE gpuspawner_groups (
	lease INTEGER NOT NULL, 
	name VARCHAR(255) NOT NULL, 
	PRIMARY KEY (lease, name), 
	FOREIGN KEY(lease) REFERENCES gpuspawner_leases (id) ON DELETE CASCADE
);
INSERT INTO "gpuspawner_groups" VALUES(1,'ml');
CREATE TABLE gpuspawner_leases (
	id INTEGER NOT NULL, 
	hub VARCHAR(255) NOT NULL, 
	server_id VARCHAR(255) NOT NULL, 
	started FLOAT NOT NULL, 
	user VARCHAR(1000) NOT NULL, 
	server VARCHAR(1000) NOT NULL, 
	course VARCHAR(1000), 
	image VARCHAR(1000) NOT NULL, 
	share_part INTEGER NOT NULL, 
	share_of INTEGER NOT NULL, 
	waited FLOAT, 
	began FLOAT NOT NULL, 
	seconds FLOAT NOT NULL, 
	until FLOAT NOT NULL, 
	boot VARCHAR(64) NOT NULL, 
	until_steady FLOAT NOT NULL, 
	is_over BOOLEAN NOT NULL, 
	why VARCHAR(32), 
	exit_code INTEGER, 
	sampled_steady FLOAT, 
	measured FLOAT, 
	idle FLOAT, 
	used_of FLOAT, 
	used FLOAT, 
	memory_of FLOAT, 
	memory FLOAT, 
	memory_peak INTEGER, 
	PRIMARY KEY (id), 
	CONSTRAINT gpuspawner_leases_server UNIQUE (hub, server_id, started)
);
INSERT INTO "gpuspawner_leases" VALUES(1,'hub','box-0',1800000100.0,'ada','',NULL,'pytorch',1,1,5.0,1800000100.0,7200.0,1800007300.0,'boot-0',7300.0,1,'exited',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "gpuspawner_leases" VALUES(2,'hub','box-1',1800000100.0,'ben','',NULL,'pytorch',1,4,0.0,1800000100.0,7200.0,1800007300.0,'boot-0',7300.0,1,'exited',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE gpuspawner_readings (
	hub VARCHAR(255) NOT NULL, 
	wall FLOAT NOT NULL, 
	steady FLOAT NOT NULL, 
	boot VARCHAR(64) NOT NULL, 
	PRIMARY KEY (hub)
);
INSERT INTO "gpuspawner_readings" VALUES('hub',1800007300.0,7300.0,'boot-0');
CREATE TABLE gpuspawner_settled (
	hub VARCHAR(255) NOT NULL, 
	server_id VARCHAR(255) NOT NULL, 
	PRIMARY KEY (hub, server_id)
);
CREATE TABLE gpuspawner_units (
	lease INTEGER NOT NULL, 
	unit VARCHAR(255) NOT NULL, 
	gpu VARCHAR(255) NOT NULL, 
	model VARCHAR(255), 
	share_part INTEGER NOT NULL, 
	share_of INTEGER NOT NULL, 
	PRIMARY KEY (lease, unit), 
	FOREIGN KEY(lease) REFERENCES gpuspawner_leases (id) ON DELETE CASCADE
);
INSERT INTO "gpuspawner_units" VALUES(1,'GPU-a','GPU-a',NULL,1,1);
INSERT INTO "gpuspawner_units" VALUES(2,'GPU-b#0/4','GPU-b',NULL,1,4);
CREATE TABLE gpuspawner_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT gpuspawner_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "gpuspawner_version" VALUES('0001');
CREATE INDEX gpuspawner_leases_began ON gpuspawner_leases (began);
CREATE INDEX gpuspawner_leases_seconds ON gpuspawner_leases (seconds);
CREATE INDEX gpuspawner_leases_until_steady ON gpuspawner_leases (until_steady);
CREATE INDEX gpuspawner_leases_user ON gpuspawner_leases (user);
CREATE INDEX gpuspawner_leases_open ON gpuspawner_leases (hub) WHERE is_over = 0;
COMMIT;
