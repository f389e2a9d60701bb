//! A part of a database: what is chosen arrives whole, what depends on the rest stays out.

use crate::support::Fixture;

const WEB: &str = "
CREATE SCHEMA s;
CREATE TYPE s.kind AS ENUM ('a', 'b');
CREATE TABLE s.other (id integer PRIMARY KEY, k s.kind);
CREATE TABLE s.wanted (id serial PRIMARY KEY, k s.kind NOT NULL DEFAULT 'a', other integer REFERENCES s.other, parent integer REFERENCES s.wanted, t text);
ALTER TABLE s.other ADD COLUMN w integer REFERENCES s.wanted;
INSERT INTO s.other VALUES (1, 'a'); INSERT INTO s.wanted (k, other, parent) VALUES ('b', 1, NULL), ('a', 1, 1); UPDATE s.other SET w = 1;
COMMENT ON CONSTRAINT wanted_other_fkey ON s.wanted IS 'to what is not chosen';
CREATE INDEX other_k ON s.other (k); CREATE INDEX wanted_k ON s.wanted (k); COMMENT ON INDEX s.other_k IS 'x';
CREATE VIEW s.of_wanted AS SELECT id FROM s.wanted;
CREATE VIEW s.of_both AS SELECT w.id FROM s.wanted w JOIN s.other o ON o.id = w.other;
CREATE VIEW s.on_both AS SELECT * FROM s.of_both; COMMENT ON VIEW s.on_both IS 'x';
CREATE MATERIALIZED VIEW s.m_other AS SELECT count(*) AS n FROM s.other; CREATE UNIQUE INDEX m_other_n ON s.m_other (n);
CREATE MATERIALIZED VIEW s.m_wanted AS SELECT count(*) AS n FROM s.wanted;
CREATE FUNCTION s.row_of() RETURNS SETOF s.other LANGUAGE sql AS 'SELECT * FROM s.other';
CREATE FUNCTION s.free_of_it() RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION s.late() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT count(*) FROM s.other); END $$;
CREATE FUNCTION s.early() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM s.other';
CREATE FUNCTION s.fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER on_other BEFORE INSERT ON s.other FOR EACH ROW EXECUTE FUNCTION s.fire();
CREATE TRIGGER on_wanted BEFORE INSERT ON s.wanted FOR EACH ROW EXECUTE FUNCTION s.fire();
CREATE RULE wanted_rule AS ON DELETE TO s.wanted DO ALSO DELETE FROM s.other;
CREATE STATISTICS s.other_stat ON id, k FROM s.other;
CREATE TABLE s.part (a integer, b integer, PRIMARY KEY (a)) PARTITION BY LIST (a);
CREATE TABLE s.part_1 PARTITION OF s.part FOR VALUES IN (1) ; CREATE TABLE s.part_2 PARTITION OF s.part FOR VALUES IN (2);
INSERT INTO s.part VALUES (1, 1), (2, 2);
CREATE TABLE s.mother (id integer); CREATE TABLE s.child (c integer) INHERITS (s.mother);
INSERT INTO s.mother VALUES (1); INSERT INTO s.child VALUES (2, 3);
CREATE SCHEMA unrelated; CREATE TABLE unrelated.t (id integer PRIMARY KEY); CREATE VIEW unrelated.v AS SELECT * FROM unrelated.t;
CREATE PUBLICATION all_of_it FOR TABLE s.other, s.wanted;
";

fn names(fixture: &Fixture) -> String {
    fixture.target_sql(
        "SELECT string_agg(n.nspname || '.' || c.relname, ' ' ORDER BY 1, c.relname COLLATE \"C\") FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname IN ('s', 'unrelated') AND c.relkind IN ('r', 'p', 'v', 'm')",
    )
}

#[test]
fn one_table_of_a_web_arrives_without_what_depends_on_the_others() {
    let fixture = Fixture::new().choose(&["s.wanted"]);
    fixture.sql(WEB);
    let report = fixture.copy();
    assert_eq!(report.tables.len(), 1);
    assert_eq!(names(&fixture), "s.m_wanted s.of_wanted s.wanted");
    assert_eq!(
        fixture.target_sql("SELECT string_agg(id || k::text, ',' ORDER BY id) FROM s.wanted"),
        "1b,2a"
    );
    let keys =
        "SELECT string_agg(conname, ' ' ORDER BY conname) FROM pg_constraint WHERE contype = 'f'";
    assert_eq!(fixture.target_sql(keys), "wanted_parent_fkey");
    assert_eq!(fixture.target_sql("SELECT n FROM s.m_wanted"), "2");
    let triggers = "SELECT string_agg(tgname, ' ') FROM pg_trigger WHERE NOT tgisinternal";
    assert_eq!(fixture.target_sql(triggers), "on_wanted");
    let functions = "SELECT string_agg(proname, ' ' ORDER BY proname) FROM pg_proc WHERE pronamespace = 's'::regnamespace";
    let functions = fixture.target_sql(functions);
    assert!(functions.contains("free_of_it") && !functions.contains("row_of"), "{functions}");
    assert_eq!(fixture.target_sql("INSERT INTO s.wanted DEFAULT VALUES RETURNING id"), "3");
}

#[test]
fn one_partition_arrives_with_its_root_and_one_child_with_its_parent_left_out() {
    let fixture = Fixture::new().choose(&["s.part_1"]);
    fixture.sql(WEB);
    fixture.copy();
    assert_eq!(names(&fixture), "s.part s.part_1");
    assert_eq!(fixture.target_sql("SELECT a, b FROM s.part"), "1|1");
    let key = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 's.part_1'::regclass AND contype = 'p'";
    assert_eq!(fixture.target_sql(key), "PRIMARY KEY (a)");
}

#[test]
fn a_parent_arrives_without_its_child() {
    let fixture = Fixture::new().choose(&["s.mother"]);
    fixture.sql(WEB);
    fixture.copy();
    assert_eq!(names(&fixture), "s.mother");
    assert_eq!(fixture.target_sql("SELECT id FROM s.mother"), "1");
}
