//! What the catalog shows of a zoo of schemas, and what globs choose of it.

use std::time::{Duration, Instant};

use tidemark_model::{
    Generated, Identity, Persistence, RelationKind, RelationName, ReplicaIdentity, TypeKind,
};
use tidemark_source::{Disposition, Selection, read_catalog};
use tidemark_testkit::{Cluster, shared};

use crate::support::{catalog, session, tables};

const ZOO: &str = r#"
    CREATE EXTENSION hstore; CREATE EXTENSION citext;
    CREATE DOMAIN short AS varchar(10); CREATE DOMAIN shorter AS short CHECK (length(VALUE) < 5);
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    ALTER TYPE mood ADD VALUE 'meh' BEFORE 'ok';
    CREATE TYPE pair AS (a int, b mood[]);
    CREATE TYPE floats AS RANGE (subtype = float8);
    CREATE TABLE zoo (
        id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, gone int, d shorter, m mood, p pair, f floats,
        mm mood[], h hstore, c citext UNIQUE, v varchar(20) COLLATE "C" NOT NULL DEFAULT 'x',
        twice int GENERATED ALWAYS AS (2) STORED, UNIQUE (v) DEFERRABLE);
    ALTER TABLE zoo DROP COLUMN gone;
    CREATE TABLE top (k int, r int, PRIMARY KEY (k, r)) PARTITION BY LIST (k);
    CREATE TABLE mid PARTITION OF top FOR VALUES IN (1) PARTITION BY RANGE (r);
    CREATE TABLE leaf PARTITION OF mid FOR VALUES FROM (0) TO (9);
    CREATE TABLE other PARTITION OF top DEFAULT;
    CREATE TABLE parent (a int); CREATE TABLE child (b int) INHERITS (parent);
    CREATE UNLOGGED TABLE unlogged (a int);
    CREATE VIEW seen AS SELECT 1 AS one; CREATE MATERIALIZED VIEW kept AS SELECT 1 AS one;
    CREATE FOREIGN DATA WRAPPER far; CREATE SERVER away FOREIGN DATA WRAPPER far;
    CREATE FOREIGN TABLE remote (a int) SERVER away;
    CREATE TABLE fully (a int); ALTER TABLE fully REPLICA IDENTITY FULL;
    CREATE TABLE byindex (a int NOT NULL, b int); CREATE UNIQUE INDEX by_a ON byindex (a);
    ALTER TABLE byindex REPLICA IDENTITY USING INDEX by_a;
    CREATE TABLE nullable (a int UNIQUE); CREATE TABLE partial (a int NOT NULL);
    CREATE UNIQUE INDEX ON partial (a) WHERE a > 5;
    SELECT setval('zoo_id_seq', 41);
    CREATE SEQUENCE "lone""ly" START 7;
    SELECT lo_create(0);
"#;

fn name(table: &str) -> RelationName {
    RelationName::new("public", table)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zoo_of_schemas_is_read_as_it_is() {
    let database = shared().unwrap();
    database.psql(ZOO).unwrap();
    let catalog = catalog(&database.url()).await;
    let zoo = catalog.relation(&name("zoo")).unwrap();
    let names: Vec<&str> = zoo.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["id", "d", "m", "p", "f", "mm", "h", "c", "v", "twice"]);
    let column = |name: &str| zoo.columns.iter().find(|column| column.name == name).unwrap();
    assert_eq!(column("d").attnum, 3);
    assert_eq!(column("id").identity, Identity::Always);
    assert_eq!(column("id").key_position, Some(1));
    assert_eq!(
        (column("twice").generated, column("twice").has_default),
        (Generated::Stored, false)
    );
    assert!(column("v").has_default && !column("v").is_nullable);
    assert_eq!(column("v").collation.as_deref(), Some("pg_catalog.C"));
    let TypeKind::Domain { base, typmod } = &column("d").data_type.kind else { panic!() };
    assert_eq!((base.name.as_str(), *typmod), ("varchar", 14));
    let labels = ["sad", "meh", "ok", "happy"].map(str::to_owned).to_vec();
    assert_eq!(column("m").data_type.kind, TypeKind::Enum(labels.clone()));
    let TypeKind::Array(element) = &column("mm").data_type.kind else { panic!() };
    assert_eq!(element.kind, TypeKind::Enum(labels));
    let TypeKind::Composite(attributes) = &column("p").data_type.kind else { panic!() };
    assert_eq!(attributes[1].0, "b");
    assert!(matches!(attributes[1].1.kind, TypeKind::Array(_)));
    let TypeKind::Range(subtype) = &column("f").data_type.kind else { panic!() };
    assert!(subtype.is_builtin("float8"));
    assert_eq!(column("h").data_type.extension.as_deref(), Some("hstore"));
    assert_eq!(column("c").data_type.extension.as_deref(), Some("citext"));
    assert_eq!(zoo.primary_key().unwrap().columns, ["id"]);
    assert_eq!(zoo.keys.len(), 2, "the nullable unique column is no key: {:?}", zoo.keys);
    assert!(zoo.keys[1].is_deferrable && !zoo.keys[0].is_deferrable);
    assert_eq!(zoo.indexes.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_identities_and_ancestors_are_told_apart() {
    let database = shared().unwrap();
    database.psql(ZOO).unwrap();
    let catalog = catalog(&database.url()).await;
    let relation = |table: &str| catalog.relation(&name(table)).unwrap();
    assert_eq!(relation("top").kind, RelationKind::PartitionedTable);
    assert_eq!(relation("leaf").partition_root, Some(name("top")));
    assert_eq!(catalog.ancestors(relation("leaf")), [&name("mid"), &name("top")]);
    assert_eq!(relation("child").inherits, [name("parent")]);
    assert_eq!(relation("unlogged").persistence, Persistence::Unlogged);
    assert_eq!(relation("seen").kind, RelationKind::View);
    assert_eq!(relation("kept").kind, RelationKind::MaterializedView);
    assert_eq!(relation("remote").kind, RelationKind::ForeignTable);
    assert_eq!(relation("fully").replica_identity, ReplicaIdentity::Full);
    assert_eq!(relation("byindex").replica_identity, ReplicaIdentity::Index("by_a".into()));
    assert!(relation("nullable").keys.is_empty() && relation("partial").keys.is_empty());
    assert_eq!(catalog.large_objects, 1);
    assert!(catalog.extensions.iter().any(|(name, _)| name == "citext"));
    let sequence = |table: &str| catalog.sequences.iter().find(|s| s.name == name(table)).unwrap();
    assert_eq!((sequence("zoo_id_seq").last_value, sequence("zoo_id_seq").is_called), (41, true));
    assert_eq!(sequence("zoo_id_seq").owned_by, Some((name("zoo"), "id".into())));
    assert_eq!((sequence("lone\"ly").last_value, sequence("lone\"ly").is_called), (7, false));
    assert!(catalog.server.system_identifier > 0 && catalog.server.timeline == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn globs_choose_leaves_and_never_their_parents() {
    let database = shared().unwrap();
    database.psql(ZOO).unwrap();
    let catalog = catalog(&database.url()).await;
    let choose = |include: &[&str], exclude: &[&str]| {
        let list = |globs: &[&str]| globs.iter().map(|glob| (*glob).to_owned()).collect();
        let chosen = Selection::new(list(include), list(exclude)).apply(&catalog);
        chosen.map(|tables| tables.into_iter().map(|table| table.name.name).collect::<Vec<_>>())
    };
    assert_eq!(choose(&["public.top"], &[]).unwrap(), ["leaf", "other"]);
    assert_eq!(choose(&["public.top"], &["public.mid"]).unwrap(), ["other"]);
    assert_eq!(choose(&["public.{parent,child}"], &[]).unwrap(), ["child", "parent"]);
    let all = choose(&[], &[]).unwrap();
    for absent in ["top", "mid", "seen", "kept", "remote"] {
        assert!(!all.contains(&absent.to_owned()), "{absent}");
    }
    let error = choose(&["public.zoo", "public.zooo"], &[]).unwrap_err();
    assert_eq!((error.object(), error.disposition()), (Some("public.zooo"), Disposition::Usage));
    assert!(choose(&["public.seen"], &[]).unwrap_err().way_out().unwrap().contains("view"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_table_is_in_one_wave_or_in_the_rest() {
    let database = shared().unwrap();
    database.psql(ZOO).unwrap();
    let catalog = catalog(&database.url()).await;
    let list =
        |globs: &[&str]| -> Vec<String> { globs.iter().map(|glob| (*glob).to_owned()).collect() };
    let choose = |include: &[&str], among: &[&str], apart: &[&str]| {
        let (include, among, apart) = (list(include), list(among), list(apart));
        let selection = Selection { include, among, apart, ..Selection::default() };
        let chosen = selection.apply(&catalog);
        chosen.map(|tables| tables.into_iter().map(|table| table.name.name).collect::<Vec<_>>())
    };
    let all = choose(&[], &[], &[]).unwrap();
    let tops = choose(&[], &["public.top"], &["public.zoo"]).unwrap();
    assert_eq!(tops, ["leaf", "other"], "partitions by the name of the table above them");
    let rest = choose(&[], &[], &["public.top", "public.zoo"]).unwrap();
    let expected: Vec<_> =
        all.iter().filter(|name| !["leaf", "other", "zoo"].contains(&name.as_str())).collect();
    assert_eq!(rest.iter().collect::<Vec<_>>(), expected);
    // Of what was chosen only; that nothing is left is no mistake, a pattern of no table is one.
    assert_eq!(choose(&["public.zoo"], &["public.top"], &[]).unwrap(), Vec::<String>::new());
    let nothing = choose(&[], &["public.topp"], &[]).unwrap_err();
    assert_eq!(nothing.object(), Some("public.topp"));
    let twice = choose(&[], &["public.mid"], &["public.top"]).unwrap_err();
    assert_eq!((twice.object(), twice.disposition()), (Some("public.leaf"), Disposition::Usage));
    assert!(
        twice.way_out().unwrap().contains("\"public.mid\"")
            && twice.way_out().unwrap().contains("\"public.top\"")
    );
    for (among, apart) in [(&["public.leaf"][..], &[][..]), (&[], &["public.leaf"])] {
        let parted = choose(&[], among, apart).unwrap_err();
        assert_eq!(parted.disposition(), Disposition::Usage);
        assert!(parted.way_out().unwrap().contains("name public.top in wave.tables"), "{parted:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn system_temporary_and_our_own_schemas_are_never_chosen() {
    let database = shared().unwrap();
    database.psql("CREATE SCHEMA tidemark; CREATE TABLE tidemark.progress (a int); CREATE TABLE a (a int)").unwrap();
    let other = session(&database.url()).await;
    other.batch_execute("CREATE TEMP TABLE passing (a int)").await.unwrap();
    let chosen = tables(&database.url(), &["*"]).await;
    assert_eq!(chosen.len(), 1, "{chosen:?}");
    assert!(catalog(&database.url()).await.temporary_tables >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_and_operators_of_others_are_never_called() {
    let database = shared().unwrap();
    database
        .psql(
            "CREATE TABLE t (id int PRIMARY KEY); \
             CREATE FUNCTION public.pg_relation_size(oid) RETURNS bigint LANGUAGE plpgsql AS $$BEGIN RAISE 'hijacked'; END$$; \
             CREATE FUNCTION public.current_database() RETURNS name LANGUAGE plpgsql AS $$BEGIN RAISE 'hijacked'; END$$; \
             CREATE FUNCTION public.never(oid, int4) RETURNS bool LANGUAGE plpgsql AS $$BEGIN RAISE 'hijacked'; END$$; \
             CREATE OPERATOR public.<> (LEFTARG = oid, RIGHTARG = int4, FUNCTION = public.never); \
             CREATE TABLE public.pg_class (oid oid);",
        )
        .unwrap();
    database
        .psql(&format!("ALTER DATABASE {} SET search_path = public, pg_catalog", database.name()))
        .unwrap();
    let catalog = catalog(&database.url()).await;
    assert_eq!(catalog.server.database, database.name());
    assert!(catalog.relation(&name("t")).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_tables_are_read_in_a_few_queries() {
    let cluster = Cluster::builder().setting("max_locks_per_transaction", "512").start().unwrap();
    cluster
        .psql(
            "postgres",
            "DO $$ BEGIN FOR i IN 1..10000 LOOP \
               EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, a text)', i); END LOOP; END $$",
        )
        .unwrap();
    let client = session(&cluster.url("postgres")).await;
    let started = Instant::now();
    let catalog = read_catalog(&client).await.unwrap();
    let took = started.elapsed();
    assert_eq!(catalog.relations.len(), 10_000);
    assert!(
        catalog.relations.iter().all(|table| table.columns.len() == 2 && table.keys.len() == 1)
    );
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_come_and_go_meanwhile_are_in_nobodys_way() {
    let database = shared().unwrap();
    let (cluster, name) = (database.cluster(), database.name().to_owned());
    let busy = std::thread::spawn(move || {
        let tables = "CREATE TABLE gone (id int PRIMARY KEY, a int UNIQUE, b int UNIQUE); COMMIT; DROP TABLE gone; COMMIT;";
        cluster.psql(&name, &format!("DO $$ BEGIN FOR i IN 1..1500 LOOP {tables} END LOOP; END $$"))
    });
    let mut read = 0;
    while !busy.is_finished() {
        catalog(&database.url()).await;
        read += 1;
    }
    busy.join().unwrap().unwrap();
    assert!(read > 10, "{read}");
}
