//! Reports such as a verify makes them.

use tidemark_model::Lsn;
use tidemark_report::*;

/// A sum such as a target may have that differs.
const SUM: u128 = 0x7d1b_03c5_e8a2_94f6_1c0d_5b7e_a3f2_6684;

fn side(version: &str, system_identifier: &str, address: &str) -> Side {
    Side {
        kind: SideKind::Postgresql,
        version: version.to_owned(),
        system_identifier: Some(system_identifier.to_owned()),
        timeline: Some(1),
        database: Some("shop".to_owned()),
        address: address.to_owned(),
        encoding: Some("UTF8".to_owned()),
        collation: Some("en_US.utf8 (glibc 2.36)".to_owned()),
        commit: None,
    }
}

pub(crate) fn lsn() -> Lsn {
    "16/B374D848".parse().unwrap()
}

pub(crate) fn barrier(tables: u64) -> Barrier {
    Barrier {
        lsn: lsn(),
        at: "2026-11-21T16:08:46.120Z".to_owned(),
        source_snapshot: SideSnapshot {
            id: Some("00000003-0000001B-1".to_owned()),
            shows: Some("731984:731991:731985,731988".parse().unwrap()),
        },
        target_snapshot: SideSnapshot {
            id: Some("00000007-00000004-1".to_owned()),
            shows: Some("90211:90211:".parse().unwrap()),
        },
        keys_set_aside: KeysSetAside::default(),
        pause_ms: 11,
        snapshot_age_ms: 41_870,
        tables,
    }
}

/// A report of these tables at one barrier, judged.
pub(crate) fn report(tables: Vec<TableReport>) -> VerifyReport {
    let source = side("15.18", "7392011847561023487", "db1:5432");
    let target = side("18.0", "7401229384756102348", "db2:5432");
    let mut report = VerifyReport {
        tool_version: "0.1.0".to_owned(),
        started_at: "2026-11-21T16:08:45.903Z".to_owned(),
        finished_at: "2026-11-21T16:09:28.010Z".to_owned(),
        duration_ms: 42_107,
        scope: Scope {
            include: vec!["public.*".to_owned()],
            exclude: vec!["public.tmp_*".to_owned()],
            not_chosen: 2,
        },
        point: Point::Barrier { barriers: vec![barrier(tables.len() as u64)] },
        tables,
        digest: DigestMethod {
            algorithm: "xxh3-128 keyed, added without regard to order, with the number of rows"
                .to_owned(),
            key_id: "9f2c41d7".to_owned(),
            canonical_version: 1,
            collision_bound: "at most 2^-96 for each leaf that differs".to_owned(),
        },
        reading: Reading {
            source_bytes: 1_174_405_120,
            target_bytes: 1_174_405_120,
            bytes_per_second: 55_784_000,
            throttled_ms: 0,
            retries: 0,
            jobs: 2,
        },
        config_hash: "0f6e1c3a5b7d92840f6e1c3a5b7d92840f6e1c3a5b7d92840f6e1c3a5b7d9284".to_owned(),
        command: "tidemark verify -c tidemark.toml --level digest --report reports/2026-11-21"
            .to_owned(),
        ..VerifyReport::new("shop", Level::Digest, source, target)
    };
    report.judge();
    report
}

/// An identical table of `rows` rows in `leaves` leaves.
pub(crate) fn same(schema: &str, table: &str, rows: u64, leaves: usize) -> TableReport {
    let each = rows / leaves as u64;
    let last = rows - each * (leaves as u64 - 1);
    let mut cells = vec![(each, LeafState::Same); leaves];
    cells[leaves - 1].0 = last;
    let sum = u128::from(rows).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    let digest = Digest { raw: sum, value: sum };
    TableReport {
        proof: Some(Proof::Full),
        level: Some(Level::Digest),
        source_rows: Some(rows),
        target_rows: Some(rows),
        source_digest: Some(digest),
        target_digest: Some(digest),
        missing: Some(0),
        extra: Some(0),
        changed: Some(0),
        equivalent: Some(0),
        lossy: Some(0),
        duration_ms: rows / 200,
        lsn: Some(lsn()),
        last_proven: Some(LastProven {
            lsn: Some(lsn()),
            at: "2026-11-21T16:08:46.120Z".to_owned(),
        }),
        source_bytes: Some(rows * 120),
        target_bytes: Some(rows * 120),
        key_columns: vec!["id".to_owned()],
        leaves: leaves as u64,
        readings: 1,
        heat_map: Some(HeatMap::of(&cells)),
        ..TableReport::new(schema, table)
    }
}

fn tpch() -> Vec<TableReport> {
    [
        ("customer", 150_000, 100),
        ("lineitem", 6_001_215, 1_000),
        ("nation", 25, 1),
        ("orders", 1_500_000, 250),
        ("part", 200_000, 100),
        ("partsupp", 800_000, 100),
        ("region", 5, 1),
        ("supplier", 10_000, 10),
    ]
    .map(|(name, rows, leaves)| same("public", name, rows, leaves))
    .to_vec()
}

/// Eight tables, nothing found.
pub(crate) fn identical() -> VerifyReport {
    report(tpch())
}

fn mark(table: &mut TableReport, leaves: &[usize], state: LeafState) {
    let count = table.leaves as usize;
    let mut cells = vec![(table.source_rows.unwrap() / count as u64, LeafState::Same); count];
    cells[count - 1].0 += table.source_rows.unwrap() % count as u64;
    for leaf in leaves {
        cells[*leaf].1 = state;
    }
    table.heat_map = Some(HeatMap::of(&cells));
    if state == LeafState::Different || state == LeafState::Unproven {
        table.last_proven = Some(LastProven {
            lsn: Some("12/7A001128".parse().unwrap()),
            at: "2026-11-14T02:00:03Z".to_owned(),
        });
    }
    table.differing_leaves = if state == LeafState::Different { leaves.len() as u64 } else { 0 };
}

pub(crate) fn redactor() -> Redactor {
    Redactor::new(Redaction::Values, [7; 32])
}

fn key(table: &TableReport, id: i64) -> Option<ShownKey> {
    let name = tidemark_model::RelationName::new(&table.schema, &table.table);
    Some(redactor().key(&name, &Key::Columns(vec![("id".to_owned(), FieldValue::Int8(id))])))
}

/// Differences of several kinds, an equivalent table, and findings about definitions.
pub(crate) fn different() -> VerifyReport {
    let mut tables = tpch();
    for table in &mut tables {
        table.level = Some(Level::Rows);
    }
    let lineitem = &mut tables[1];
    mark(lineitem, &[17, 18, 400, 811], LeafState::Different);
    lineitem.target_rows = Some(6_001_206);
    lineitem.target_digest = Some(Digest { raw: SUM, value: SUM });
    (lineitem.missing, lineitem.extra, lineitem.changed) = (Some(12), Some(3), Some(5));
    lineitem.columns = vec![
        ColumnFinding {
            column: "l_comment".to_owned(),
            changed: 4,
            equivalent: 0,
            lossy: 0,
            hint: None,
        },
        ColumnFinding {
            column: "l_shipdate".to_owned(),
            changed: 1,
            equivalent: 0,
            lossy: 0,
            hint: None,
        },
    ];
    (lineitem.first_key, lineitem.last_key) = (key(lineitem, 102_331), key(lineitem, 4_871_090));
    let orders = &mut tables[3];
    mark(orders, &[249], LeafState::Different);
    orders.target_digest = Some(Digest { raw: !SUM, value: !SUM });
    orders.changed = Some(1);
    orders.columns = vec![ColumnFinding {
        column: "o_totalprice".to_owned(),
        changed: 1,
        equivalent: 0,
        lossy: 0,
        hint: None,
    }];
    (orders.first_key, orders.last_key) = (key(orders, 5_999_971), key(orders, 5_999_971));
    let part = &mut tables[4];
    mark(part, &[3, 4, 5, 60, 99], LeafState::Equivalent);
    let value = part.source_digest.unwrap().value;
    part.target_digest = Some(Digest { raw: SUM ^ 3, value });
    part.equivalent = Some(180);
    part.columns = vec![ColumnFinding {
        column: "p_retailprice".to_owned(),
        changed: 0,
        equivalent: 180,
        lossy: 0,
        hint: Some("equal numbers with another scale: --allow equivalent accepts them".to_owned()),
    }];
    let mut long = same(
        "a_schema_with_quite_a_long_name_that_goes_on",
        "a_table_whose_name_has_all_the_sixty_three_bytes_that_fit_in_it",
        7,
        1,
    );
    long.target_rows = Some(0);
    long.missing = Some(7);
    long.target_digest = Some(Digest { raw: 0, value: 0 });
    long.key_columns.clear();
    mark(&mut long, &[0], LeafState::Different);
    tables.push(long);
    tables[3].differing_definitions = 1;
    let mut report = report(tables);
    report.level = Level::Rows;
    report.point = Point::Barrier {
        barriers: vec![Barrier {
            keys_set_aside: KeysSetAside { equal: 40, different: 1, unsettled: 0 },
            ..barrier(9)
        }],
    };
    report.schema_findings = definitions();
    report.policy = Policy {
        allow: vec![Allowance::Equivalent],
        mappings: vec![Mapping {
            schema: "public".to_owned(),
            table: "part".to_owned(),
            column: "p_retailprice".to_owned(),
            mapping: "numeric scale".to_owned(),
            class: Allowance::Equivalent,
            values: 180,
        }],
    };
    report.diff = Some(DiffFile {
        name: "diff.ndjson".to_owned(),
        lines: 208,
        rows: DiffCounts { missing: 19, extra: 3, changed: 6, equivalent: 180, lossy: 0 },
        sha256: "4b".repeat(32),
    });
    report.judge();
    report
}

fn definitions() -> Vec<SchemaFinding> {
    vec![
        SchemaFinding {
            object: "public.orders_note_idx".to_owned(),
            kind: "index-missing".to_owned(),
            severity: SchemaSeverity::Warning,
            source: Some("CREATE INDEX orders_note_idx ON public.orders USING gin (o_comment gin_trgm_ops)".to_owned()),
            target: None,
            fix: Some("CREATE INDEX CONCURRENTLY orders_note_idx ON public.orders USING gin (o_comment gin_trgm_ops)".to_owned()),
        },
        SchemaFinding {
            object: "public.orders.o_clerk".to_owned(),
            kind: "type-differs".to_owned(),
            severity: SchemaSeverity::Different,
            source: Some("character varying(15)".to_owned()),
            target: Some("text".to_owned()),
            fix: Some("ALTER TABLE public.orders ALTER COLUMN o_clerk TYPE character varying(15)".to_owned()),
        },
        SchemaFinding {
            object: "public.orders_id_seq".to_owned(),
            kind: "sequence-behind".to_owned(),
            severity: SchemaSeverity::Note,
            source: Some("in step with the largest id".to_owned()),
            target: Some("behind the largest id".to_owned()),
            fix: None,
        },
    ]
}

/// Five hundred tables of which some were skipped, an incremental proof.
pub(crate) fn incomplete() -> VerifyReport {
    let mut tables: Vec<_> = (0..494_u64)
        .map(|number| {
            let schema = ["sales", "billing", "warehouse_of_the_north"][number as usize % 3];
            let name = match number % 7 {
                0 => format!("events_of_month_{number:03}_partition_by_region_and_customer_group"),
                _ => format!("t{number:03}"),
            };
            same(schema, &name, 1_000 + number * number * 37, 1 + number as usize % 90)
        })
        .collect();
    for (table, reason) in [
        (
            "documents",
            "row-level security hides rows from the role verify: grant BYPASSRLS, or run as the owner",
        ),
        (
            "attachments",
            "column \"body\" is an oid that points to large objects, which cannot be compared",
        ),
        (
            "legacy_log",
            "ALTER TABLE was seen between the source's snapshot and the barrier, three times",
        ),
        ("<script>alert(1)</script>", "the name is a joke & still a table"),
    ] {
        let mut skipped = TableReport::skipped("sales", table, reason);
        skipped.last_proven = Some(LastProven {
            lsn: Some("12/7A001128".parse().unwrap()),
            at: "2026-11-14T02:00:03Z".to_owned(),
        });
        tables.push(skipped);
    }
    let mut cut = same("billing", "ledger_entries", 90_000, 90);
    mark(&mut cut, &(61..90).collect::<Vec<_>>(), LeafState::Unproven);
    cut.skipped_reason = Some(
        "the source closed the connection after leaf 61 of 90, and again after three retries"
            .to_owned(),
    );
    tables.push(cut);
    let mut carried = same("billing", "invoices", 400_000, 80);
    mark(&mut carried, &(0..74).collect::<Vec<_>>(), LeafState::Carried);
    carried.proof = Some(Proof::Incremental);
    carried.oldest_leaf_lsn = Some("12/7A001128".parse().unwrap());
    tables.push(carried);
    let mut report = report(tables);
    report.skipped = vec![Skipped {
        object: "large objects".to_owned(),
        reason: "14 large objects on the source; they are not copied and not compared".to_owned(),
    }];
    report.judge();
    report
}

/// Equal values in other representations, which the policy does not allow.
pub(crate) fn equivalent() -> VerifyReport {
    let mut tables = tpch();
    let value = tables[4].source_digest.unwrap().value;
    tables[4].target_digest = Some(Digest { raw: SUM ^ 3, value });
    mark(&mut tables[4], &[3, 4, 5], LeafState::Equivalent);
    tables[4].equivalent = Some(180);
    report(tables)
}

/// Every sample by its name.
pub(crate) fn all() -> [(&'static str, VerifyReport); 4] {
    [
        ("identical", identical()),
        ("different", different()),
        ("incomplete", incomplete()),
        ("equivalent", equivalent()),
    ]
}
