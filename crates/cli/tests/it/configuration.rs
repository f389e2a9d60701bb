//! The file: what is in force, and one clear message for each mistake.

use crate::{Place, assert_says, run};

const ENDS: &str =
    "[source]\nurl = \"postgres://app@db1/shop\"\n[target]\nurl = \"postgres://load@db2/shop\"\n";

/// The error for a file that begins with valid ends; line 5 is the first of `more`.
fn error_of(more: &str) -> String {
    Place::new().file("tidemark.toml", &format!("{ENDS}{more}")).run(&["config", "check"]).usage()
}

#[test]
fn the_example_is_valid_as_it_is_and_with_everything_set() {
    let example = run(&["config", "example"]).ok();
    let shown = Place::new().run_with_stdin(&["config", "check", "-c", "-"], &example).ok();
    assert_says(&shown, &["job.name = \"shop\"", "limits.memory = \"512MiB\"", "# file"]);

    let set: Vec<&str> = example
        .lines()
        // Each hook is a command or a URL.
        .filter(|line| !line.contains("_url = "))
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| !c.is_whitespace()) => rest,
            _ => line,
        })
        .collect();
    let shown = Place::new().run_with_stdin(&["config", "check", "-c", "-"], &set.join("\n")).ok();
    assert_says(
        &shown,
        &["table[0].name = \"public.orders\"", "snapshot.readers = 4", "select.exclude"],
    );
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let place = Place::new().file(
        "other.toml",
        &format!("{ENDS}[job]\nname = \"in-file\"\n[snapshot]\nchunk_bytes = \"1MiB\"\n"),
    );
    let shown = place.run(&["config", "check", "-c", "other.toml", "--job", "in-flag"]).ok();
    let line = |key: &str| shown.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
    assert_says(&line("job.name"), &["\"in-flag\"", "# flag"]);
    assert_says(&line("snapshot.chunk_bytes"), &["\"1MiB\"", "# file"]);
    assert_says(&line("limits.memory"), &["\"512MiB\"", "# default"]);
}

#[test]
fn flags_alone_are_enough_and_name_the_job_after_the_database() {
    let shown = run(&[
        "config",
        "check",
        "--source",
        "host=db1 dbname=My_Shop",
        "--target",
        "file:///lake",
        "--table",
        "public.a*",
        "--table",
        "b.c",
    ])
    .ok();
    assert_says(
        &shown,
        &["no file", "job.name = \"my-shop\"", "select.include = [\"public.a*\", \"b.c\"]"],
    );
}

#[test]
fn a_misspelt_key_is_named_with_its_place_and_the_one_that_was_meant() {
    let text = error_of("\n[snapshot]\n  reader = 4\n");
    assert_says(
        &text,
        &["tidemark.toml:7:3", "\"reader\" in [snapshot]", "did you mean \"readers\"?"],
    );
    assert_says(&error_of("[snapshots]\n"), &["tidemark.toml:5:2", "did you mean [snapshot]?"]);
    assert_says(&error_of("[snapshot]\nmemory = \"1GiB\"\n"), &["did you mean limits.memory?"]);
    assert_says(
        &error_of("[[table]]\nname = \"a.b\"\nwere = \"x\"\n"),
        &[":7:1", "did you mean \"where\"?"],
    );
}

#[test]
fn a_hook_is_a_command_or_a_url() {
    for (more, says) in [
        ("switch_url = \"deploy.example\"\n", "no http:// or https:// URL"),
        ("switch_url = \"file:///etc\"\n", "no http:// or https:// URL"),
        ("switch_url = \"https://a.example\"\nswitch_hook = [\"./s\"]\n", "in one way"),
        ("fence_url = \"https://a.example\"\nfence_hook = [\"./f\"]\n", "in one way"),
        ("fence = \"hook\"\nfence_url = \"https://a.example\"\n", "cutover.open_url"),
        ("open_url = \"a.example\"\n", "no http:// or https:// URL"),
        ("hook_timeout = \"0s\"\n", "cutover.hook_timeout"),
    ] {
        assert_says(&error_of(&format!("[cutover]\n{more}")), &[says, "tidemark.toml:"]);
    }
}

#[test]
fn a_wave_has_a_name_of_its_own_and_tables() {
    let wave = |name: &str, tables: &str| format!("[[wave]]\nname = {name:?}\ntables = {tables}\n");
    let pets = "[\"public.pet\"]";
    for (more, says) in [
        (wave("back", pets), vec!["tidemark.toml:6", "wave.name", "the stream back"]),
        (wave("rest", pets), vec!["wave.name", "that no wave names"]),
        (wave("Pilot", pets), vec!["is not a wave's name", "\"pilot\""]),
        (wave("123456789012345678901", pets), vec!["1 to 20"]),
        (wave("pilot", "[]"), vec!["has no tables"]),
        ("[[wave]]\nname = \"pilot\"\n".to_owned(), vec!["has no tables"]),
        ("[[wave]]\ntables = [\"a.b\"]\n".to_owned(), vec!["has no name"]),
        (wave("pilot", "[\"pet\"]"), vec!["wave.tables", "SCHEMA.TABLE"]),
        (wave("a", pets) + &wave("a", "[\"b.c\"]"), vec!["tidemark.toml:9", "two waves \"a\""]),
        (wave("a", pets) + &wave("b", pets), vec!["another wave has \"public.pet\""]),
    ] {
        assert_says(&error_of(&more), &says);
    }
    let two = wave("a", pets) + &wave("b", "[\"b.*\"]");
    let place = Place::new().file("tidemark.toml", &format!("{ENDS}{two}"));
    let shown = place.run(&["config", "check"]).ok();
    assert_says(&shown, &["wave[1].name = \"b\"", "wave[0].tables = [\"public.pet\"]"]);
    let wrong = place.run(&["status", "--job", "x", "--wave", "c"]).usage();
    assert_says(&wrong, &["no wave \"c\"", "a, b, rest"]);
    let none = Place::new().file("tidemark.toml", ENDS).run(&["status", "--wave", "a"]).usage();
    assert_says(&none, &["no [[wave]] is configured"]);
    let lake = "[source]\nurl = \"postgres://app@db1/shop\"\n[target]\nurl = \"file:///lake\"\n";
    let place = Place::new().file("tidemark.toml", &format!("{lake}{two}"));
    assert_says(
        &place.run(&["config", "check"]).usage(),
        &["wave", "a lake is filled in one piece"],
    );
    let given = ENDS.replace("[target]", "slot = \"theirs\"\n[target]");
    let place = Place::new().file("tidemark.toml", &format!("{given}{two}"));
    let one = place.run(&["complete", "--wave", "a", "--yes"]).usage();
    assert_says(&one, &["source.slot", "each wave has a slot"]);
}

#[test]
fn each_wrong_value_is_named_with_its_key_and_place() {
    for (more, parts) in [
        (
            "[limits]\nmemory = \"512\"\n",
            &[":6:10", "limits.memory", "\"512\" is not a size", "64MiB"] as &[&str],
        ),
        ("[limits]\nmemory = \"1kB\"\n", &[":6:10", "not between 16.0 MiB and"]),
        (
            "[snapshot]\nlock_timeout = \"5\"\n",
            &[":6:16", "snapshot.lock_timeout", "not a duration"],
        ),
        ("[snapshot]\nlock_timeout = \"0s\"\n", &["not between 10ms and"]),
        ("[snapshot]\nreaders = 0\n", &[":6:11", "snapshot.readers", "between 1 and 64"]),
        ("[snapshot]\nreaders = \"four\"\n", &[":6:11", "a text stands where u32 is expected"]),
        ("[snapshot]\nreaders = -1\n", &[":6:11", "expected u32"]),
        ("[job]\nname = \"My Shop\"\n", &[":6:8", "job.name", "\"my-shop\""]),
        ("[job]\nname = \"abcdefghijklmnopqrstu\"\n", &["not a job name"]),
        ("[parquet]\ncompression = \"zst\"\n", &[":6:15", "zstd, lz4", "did you mean \"zstd\"?"]),
        ("[verify]\nlevel = \"deep\"\n", &[":6:9", "verify.level", "schema, count, digest, rows"]),
        ("[verify]\njobs = 65\n", &[":6:8", "verify.jobs", "between 1 and 64"]),
        ("[verify]\nrate = \"1kB\"\n", &[":6:8", "verify.rate", "not between 64.0 KiB and"]),
        (
            "[verify]\nallow = [\"lossy\", \"equivalnt\"]\n",
            &[":6:9", "verify.allow", "equivalent, lossy", "did you mean \"equivalent\"?"],
        ),
        ("[select]\ninclude = [\"orders\"]\n", &[":6:11", "select.include", "SCHEMA.TABLE"]),
        ("[select]\ninclude = []\n", &["the list is empty"]),
        (
            "[[table]]\nname = \"a.b\"\n[[table]]\nname = \"a.b\"\n",
            &[":8:8", "table.name", "a.b has a section already"],
        ),
        (
            "[[table]]\nname = \"a.b\"\n[[table]]\nname = 'a.\"b\"'\n",
            &["a.b has a section already"],
        ),
        ("[[table]]\nname = \"a.*\"\n", &["wildcard"]),
        ("[[table]]\nwhere = \"x\"\n", &[":5:", "has no name"]),
        ("[[table]]\nname = \"a.b\"\nwhere = \" \"\n", &[":7:9", "table.where", "empty"]),
        ("[[table]]\nname = \"a.b\"\ncolumns = [\"x\", \"x\"]\n", &["\"x\" is there twice"]),
        ("[[table]]\nname = \"a.b\"\ncolumns = []\n", &["table.columns"]),
        ("[table]\nname = \"a.b\"\n", &["[[table]]"]),
    ] {
        let text = error_of(more);
        assert_says(&text, parts);
        assert_says(&text, &["error: "]);
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn a_slot_of_somebody_else_excludes_what_is_about_one_of_ours() {
    for (of_source, more, key) in [
        ("failover = true\n", "", "source.failover"),
        ("", "[limits]\non_full = \"drop-slot\"\n", "limits.on_full"),
    ] {
        let slot = format!("slot = \"made_by_dba\"\n{of_source}[target]");
        let text = format!("{}{more}", ENDS.replace("[target]", &slot));
        let place = Place::new().file("tidemark.toml", &text);
        assert_says(&place.run(&["config", "check"]).usage(), &[key, "source.slot"]);
    }
}

#[test]
fn lanes_are_for_postgresql_targets_whose_triggers_do_not_fire() {
    let check = |target: &str, more: &str| {
        let ends = ENDS.replace("url = \"postgres://load@db2/shop\"", target);
        Place::new().file("tidemark.toml", &format!("{ends}{more}"))
    };
    let target = "url = \"postgres://load@db2/shop\"";
    let shown = check(target, "[stream]\nlanes = 32\n").run(&["config", "check"]).ok();
    assert_says(&shown, &["stream.lanes = 32", "# file"]);
    for lanes in ["0", "33"] {
        let text = check(target, &format!("[stream]\nlanes = {lanes}\n"));
        let parts = [":6:9", "stream.lanes", "is not between 1 and 32"];
        assert_says(&text.run(&["config", "check"]).usage(), &parts);
    }
    let lanes = "[stream]\nlanes = 2\n";
    let text = check("url = \"file:///lake\"", lanes).run(&["config", "check"]).usage();
    assert_says(&text, &["stream.lanes", "a lake is written in one lane"]);
    let fires = format!("{target}\ntriggers = \"as-is\"");
    let text = check(&fires, lanes).run(&["config", "check"]).usage();
    assert_says(&text, &["stream.lanes", "target.triggers = \"replica\""]);
    // One lane is what everybody has.
    check("url = \"file:///lake\"", "[stream]\nlanes = 1\n").run(&["config", "check"]).ok();
}

#[test]
fn broken_toml_is_named_with_its_place() {
    let text = error_of("[limits\nmemory = 1\n");
    assert_says(&text, &["error: tidemark.toml:5:"]);
    assert_says(
        &error_of("[limits]\nmemory = \"1GiB\"\nmemory = \"2GiB\"\n"),
        &["tidemark.toml:7:1", "duplicate key"],
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let text = run(&["config", "check", "-c", "none.toml"]).usage();
    assert_says(&text, &["\"none.toml\"", "No such file", "config example"]);
}

#[test]
fn references_are_replaced_and_those_that_do_not_work_are_named() {
    let file = "[source]\nurl = \"postgres://${DB_USER:-app}@${HOST}/shop\"\n[target]\nurl = \"${file:target.url}\"\n";
    let place = Place::new().file("tidemark.toml", file).file("target.url", "file:///lake\n");
    let text = place.run(&["config", "check"]).usage();
    assert_says(&text, &["tidemark.toml:2:7", "source.url", "HOST is not set"]);

    let place = place.set("HOST", "db9");
    let shown = place.run(&["config", "check"]).ok();
    assert_says(&shown, &["postgres://app@db9/shop", "target.url = \"file:///lake\""]);

    std::fs::remove_file(place.path().join("target.url")).unwrap();
    assert_says(
        &place.run(&["config", "check"]).usage(),
        &[":4:7", "target.url", "cannot be read"],
    );
}

#[test]
fn a_wrong_url_says_what_to_write() {
    let check = |source: &str, target: &str| {
        run(&["config", "check", "--source", source, "--target", target]).usage()
    };
    assert_says(&check("mysql://h/d", "file:///lake"), &["--source", "mysql://", "postgres://"]);
    assert_says(&check("shop", "file:///lake"), &["--source", "postgres://"]);
    assert_says(&check("postgres://h/d", "/lake"), &["--target", "file:///lake"]);
    assert_says(&check("postgres://h/d", "ftp://h"), &["ftp://", "s3://BUCKET"]);
    assert_says(&check("postgres://h", "file:///lake"), &["--job NAME"]);
}

#[test]
fn the_schema_is_json_and_knows_every_choice() {
    let schema: serde_json::Value = serde_json::from_str(&run(&["config", "schema"]).ok()).unwrap();
    let compression = &schema["properties"]["parquet"]["properties"]["compression"];
    assert_eq!(compression["default"], "zstd");
    assert_eq!(compression["anyOf"][0]["enum"][3], "none");
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["table"]["items"]["properties"]["where"]["type"], "string");
    let text = schema.to_string();
    assert!(!text.contains("[\"string\",\"null\"]") && !text.contains("$ref"), "{text}");
}

#[test]
fn a_service_file_gives_the_database_that_the_job_is_named_after() {
    let place = Place::new().file("services", "[prod]\nhost=db1\ndbname=Big_Shop\nuser=app\n");
    let file = place.path().join("services").display().to_string();
    let place = place.set("PGSERVICEFILE", &file);
    let shown = place
        .run(&[
            "config",
            "check",
            "--source",
            "postgres://?service=prod",
            "--target",
            "file:///lake",
        ])
        .ok();
    assert_says(&shown, &["job.name = \"big-shop\""]);
}
