"""The database's schema, whole: what tiffin knows, one table a noun.

Rules: the database is the truth and the disk follows. A row is written after the files that it
names are complete, and deleted before they are. Times are nanoseconds since the epoch. Documents
(``config``, ``state``…) are JSON, kept byte for byte where a digest is taken over them.
"""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    # 1: the first schema
    """
    CREATE TABLE layers (
        chain_id  TEXT PRIMARY KEY,       -- sha256:… of the stack up to and with this layer
        diff_id   TEXT NOT NULL,          -- sha256:… of the layer's uncompressed tar
        parent    TEXT REFERENCES layers, -- chain ID of the layer below, NULL at the bottom
        snapshot  TEXT NOT NULL,          -- the storage driver's key; shared by equal diffs
        driver    TEXT NOT NULL,
        tar_size  INTEGER NOT NULL,       -- bytes of the uncompressed tar
        size      INTEGER NOT NULL,       -- bytes of content, as Usage.size
        created   INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX layers_by_parent ON layers (parent);
    CREATE INDEX layers_by_diff ON layers (diff_id);

    CREATE TABLE snapshots (               -- everything that the driver may hold
        key       TEXT NOT NULL,
        driver    TEXT NOT NULL,
        purpose   TEXT NOT NULL CHECK (purpose IN ('layer', 'container', 'init', 'work')),
        chain     TEXT REFERENCES layers,  -- the stack that it lies on; NULL for a layer's own
                                           -- snapshot, and for one that lies on nothing
        mountpoints INTEGER NOT NULL DEFAULT 0, -- whether an init snapshot is in between
        PRIMARY KEY (driver, key)
    ) STRICT;
    CREATE INDEX snapshots_by_chain ON snapshots (chain);

    CREATE TABLE moves (                   -- commits under way: finished at the next start
        driver    TEXT NOT NULL,
        key       TEXT NOT NULL,           -- the writable snapshot whose files
        name      TEXT NOT NULL,           -- become this committed one
        chain     TEXT NOT NULL REFERENCES layers,
        PRIMARY KEY (driver, key)
    ) STRICT;

    CREATE TABLE images (
        id        TEXT PRIMARY KEY,        -- sha256:… of config
        config    BLOB NOT NULL,           -- the OCI image configuration, byte for byte
        top       TEXT REFERENCES layers,  -- chain ID of the top layer, NULL for an empty image
        size      INTEGER NOT NULL,        -- sum of the sizes of its layers
        created   INTEGER NOT NULL,        -- when it came into this store
        tagged    INTEGER                  -- when it was last tagged
    ) STRICT;
    CREATE INDEX images_by_top ON images (top);

    CREATE TABLE tags (
        name      TEXT PRIMARY KEY,        -- docker.io/library/busybox:latest, or …@sha256:…
        image     TEXT NOT NULL REFERENCES images
    ) STRICT;
    CREATE INDEX tags_by_image ON tags (image);

    CREATE TABLE containers (
        id        TEXT PRIMARY KEY,        -- 64 hex digits
        name      TEXT NOT NULL UNIQUE,    -- without the leading slash
        image     TEXT NOT NULL,           -- image ID; the image may be gone (rmi --force)
        base      TEXT REFERENCES layers,  -- chain ID of the image's top layer
        frozen    TEXT,                    -- chain ID where commits have moved the container's
                                           -- own files into layers above base, else NULL
        snapshot  TEXT NOT NULL,           -- the writable snapshot's key
        spec      BLOB NOT NULL,           -- what was asked at creation
        state     BLOB NOT NULL,           -- what has happened since
        size      INTEGER,                 -- bytes of the container layer when it last stopped;
                                           -- NULL while it may be changing
        created   INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX containers_by_image ON containers (image);

    CREATE TABLE volumes (
        name      TEXT PRIMARY KEY,
        anonymous INTEGER NOT NULL,
        driver    TEXT NOT NULL,
        options   BLOB NOT NULL,
        labels    BLOB NOT NULL,
        created   INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE build_cache (
        key       TEXT PRIMARY KEY,        -- sha256:… over the named parts
        parent    TEXT,                    -- the key of the step before
        step      TEXT NOT NULL,           -- the instruction, as written to the history
        parts     BLOB NOT NULL,           -- the named parts, packed: see tiffin.build.cache
        result    BLOB NOT NULL,           -- the image configuration after the step
        top       TEXT REFERENCES layers,  -- the top layer after the step
        size      INTEGER NOT NULL,        -- bytes of the layer that the step made
        created   INTEGER NOT NULL,
        used      INTEGER NOT NULL,
        uses      INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX build_cache_by_parent ON build_cache (parent);
    """,
    # registries: what layers and images are called there
    """
    CREATE TABLE blobs (                   -- the packed forms of a layer's tar
        diff_id    TEXT NOT NULL,
        digest     TEXT NOT NULL,
        size       INTEGER NOT NULL,
        media_type TEXT NOT NULL,
        recipe     TEXT,                   -- how the same bytes can be made here, or NULL
        created    INTEGER NOT NULL,
        PRIMARY KEY (diff_id, digest)
    ) STRICT;

    CREATE TABLE blob_places (             -- where a blob was seen
        digest     TEXT NOT NULL,
        registry   TEXT NOT NULL,
        repository TEXT NOT NULL,
        seen       INTEGER NOT NULL,
        PRIMARY KEY (digest, registry, repository)
    ) STRICT;

    CREATE TABLE manifests (               -- what images were pulled or pushed as
        digest     TEXT NOT NULL,
        image      TEXT NOT NULL REFERENCES images ON DELETE CASCADE,
        media_type TEXT NOT NULL,
        content    BLOB NOT NULL,          -- byte for byte
        created    INTEGER NOT NULL,
        PRIMARY KEY (image, digest)
    ) STRICT;
    """,
    # networks
    """
    CREATE TABLE networks (
        id        TEXT PRIMARY KEY,        -- 64 hex digits
        name      TEXT NOT NULL UNIQUE,
        settings  BLOB NOT NULL,           -- what was asked, the chosen subnets filled in
        created   INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE endpoints (               -- the places of running containers in networks
        id        TEXT PRIMARY KEY,        -- 64 hex digits
        network   TEXT NOT NULL REFERENCES networks,
        container TEXT NOT NULL,           -- also of a build's step, which has no row
        settings  BLOB NOT NULL,           -- interface, addresses, names
        UNIQUE (network, container)
    ) STRICT;

    CREATE TABLE published_ports (         -- the host's ports of running containers
        container TEXT PRIMARY KEY,
        ports     BLOB NOT NULL
    ) STRICT;
    """,
    # annotations: what manifests of images say
    """
    CREATE TABLE annotations (
        image      TEXT PRIMARY KEY REFERENCES images ON DELETE CASCADE,
        given      TEXT NOT NULL           -- JSON: kind:name to value
    ) STRICT;
    """,
    # storage drivers side by side
    """
    -- its files have become a layer: it is to be made anew
    ALTER TABLE snapshots ADD COLUMN moved INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX snapshots_by_key ON snapshots (key);

    CREATE TABLE migrated (                -- layers that a migration has copied to another driver
        chain     TEXT NOT NULL,           -- chain ID
        driver    TEXT NOT NULL,           -- where the copy is
        snapshot  TEXT NOT NULL,           -- its key there
        PRIMARY KEY (driver, chain)
    ) STRICT;
    """,
)
