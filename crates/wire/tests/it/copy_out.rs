//! COPY OUT against the real server, compared with what the server itself says.

use tidemark_model::{Budget, TupleForm};
use tidemark_wire::{Error, Mode, RawConnection};

use crate::cluster::cluster;

const TARGET: usize = 256 * 1024;

async fn connect() -> RawConnection {
    cluster().unix().connect_raw(Mode::Sql).await.unwrap()
}

/// All rows of a COPY, and its count.
async fn read_all(
    raw: &mut RawConnection,
    sql: &str,
    form: TupleForm,
    target: usize,
) -> Result<(Vec<Vec<u8>>, u64), Error> {
    let budget = Budget::new(64 << 20);
    let mut copy = raw.copy_out(sql, form).await?;
    let mut rows = Vec::new();
    while let Some((tuples, reservation)) = copy.next(target, &budget).await? {
        assert!(tuples.row_count() > 0);
        assert!(reservation.bytes() >= tuples.data.len() as u64);
        assert_eq!(*tuples.ends.last().unwrap() as usize, tuples.data.len());
        rows.extend(tuples.rows().map(<[u8]>::to_vec));
    }
    assert_eq!(budget.used(), 0, "memory is given back");
    let count = copy.rows().unwrap();
    // After the end it stays at the end.
    assert!(copy.next(target, &budget).await?.is_none());
    Ok((rows, count))
}

#[tokio::test]
async fn no_row_one_row_and_many_rows_come_as_the_server_counts_them() {
    let mut raw = connect().await;
    for count in [0_usize, 1, 2, 1000, 200_000] {
        let query = format!("select g, repeat('x', g % 97) from generate_series(1, {count}) g");
        let text = format!("copy ({query}) to stdout");
        let (rows, counted) = read_all(&mut raw, &text, TupleForm::PgText, TARGET).await.unwrap();
        assert_eq!((rows.len(), counted), (count, count as u64));
        for (index, row) in rows.iter().enumerate() {
            let g = index + 1;
            assert_eq!(row, format!("{g}\t{}\n", "x".repeat(g % 97)).as_bytes());
        }
        let binary = format!("copy ({query}) to stdout (format binary)");
        let (rows, counted) =
            read_all(&mut raw, &binary, TupleForm::PgBinary, TARGET).await.unwrap();
        assert_eq!((rows.len(), counted), (count, count as u64));
        for (index, row) in rows.iter().enumerate() {
            let g = i32::try_from(index + 1).unwrap();
            let text = "x".repeat(usize::try_from(g % 97).unwrap());
            let expected = [
                &[0, 2, 0, 0, 0, 4][..],
                &g.to_be_bytes(),
                &(g % 97).to_be_bytes(),
                text.as_bytes(),
            ];
            assert_eq!(*row, expected.concat());
        }
    }
}

#[tokio::test]
async fn over_tls_the_rows_are_the_same() {
    let spec = cluster().tcp("trust_user", "sslmode=require");
    let mut raw = spec.connect_raw(Mode::Sql).await.unwrap();
    let sql = "copy (select g from generate_series(1, 100000) g) to stdout";
    let (rows, count) = read_all(&mut raw, sql, TupleForm::PgText, TARGET).await.unwrap();
    assert_eq!(count, 100_000);
    assert!(
        rows.iter().enumerate().all(|(index, row)| *row == format!("{}\n", index + 1).as_bytes())
    );
}

#[tokio::test]
async fn rows_larger_than_the_target_and_than_the_budget_come_alone_and_whole() {
    const BIG: usize = 50_000_000;
    let mut raw = connect().await;
    let budget = Budget::new(8 << 20);
    let sql = format!(
        "copy (select g, case when g % 3 = 0 then repeat('x', {BIG}) else 'small' end from generate_series(1, 7) g) to stdout"
    );
    let mut copy = raw.copy_out(&sql, TupleForm::PgText).await.unwrap();
    let mut sizes = Vec::new();
    while let Some((tuples, reservation)) = copy.next(TARGET, &budget).await.unwrap() {
        assert!(reservation.bytes() >= tuples.data.len() as u64);
        assert!(budget.used() <= budget.total());
        sizes.extend(tuples.rows().map(<[u8]>::len));
        if tuples.data.len() > TARGET {
            assert_eq!(tuples.row_count(), 1);
        }
    }
    assert_eq!(sizes, [8, 8, BIG + 3, 8, 8, BIG + 3, 8]);
    assert_eq!(budget.used(), 0);
}

#[tokio::test]
async fn two_readers_with_rows_larger_than_half_the_budget_do_not_wait_for_each_other() {
    let budget = Budget::new(4 << 20);
    let read = async || {
        let mut raw = connect().await;
        let sql = "copy (select repeat('x', 3000000) from generate_series(1, 10)) to stdout";
        let mut copy = raw.copy_out(sql, TupleForm::PgText).await.unwrap();
        while copy.next(1 << 20, &budget).await.unwrap().is_some() {}
        copy.rows().unwrap()
    };
    let both = async { tokio::join!(read(), read()) };
    let rows = tokio::time::timeout(std::time::Duration::from_secs(60), both).await;
    assert_eq!(rows.expect("no deadlock"), (10, 10));
}

#[tokio::test]
async fn a_backend_that_is_terminated_in_mid_copy_is_an_error_never_a_short_copy() {
    let admin = cluster().unix().connect().await.unwrap();
    for form in [TupleForm::PgText, TupleForm::PgBinary] {
        let mut raw = connect().await;
        let pid = raw.backend_pid();
        let options = if form == TupleForm::PgBinary { "(format binary)" } else { "" };
        let sql = format!("copy (select generate_series(1, 500000000)) to stdout {options}");
        let budget = Budget::new(64 << 20);
        let mut copy = raw.copy_out(&sql, form).await.unwrap();
        let mut next = copy.next(TARGET, &budget).await;
        assert!(matches!(next, Ok(Some(_))));
        admin.execute("select pg_terminate_backend($1)", &[&pid]).await.unwrap();
        while let Ok(Some(_)) = next {
            next = copy.next(TARGET, &budget).await;
        }
        let error = next.expect_err("the COPY was cut");
        assert!(error.is_closed(), "{error}");
        assert_eq!(copy.rows(), None);
    }
}

#[tokio::test]
async fn an_error_in_mid_copy_comes_after_the_rows_and_leaves_the_connection_usable() {
    let mut raw = connect().await;
    let sql = "copy (select 1 / (1000 - g) from generate_series(1, 2000) g) to stdout";
    let error = read_all(&mut raw, sql, TupleForm::PgText, TARGET).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("22012"));
    assert!(!raw.is_busy());
    assert_eq!(raw.simple_query("select 1").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_running_copy_is_aborted_and_the_connection_goes_on() {
    let mut raw = connect().await;
    let budget = Budget::new(64 << 20);
    let sql = "copy (select generate_series(1, 500000000)) to stdout";
    let mut copy = raw.copy_out(sql, TupleForm::PgText).await.unwrap();
    assert!(copy.next(TARGET, &budget).await.unwrap().is_some());
    copy.abort().await.unwrap();
    assert_eq!(raw.simple_query("select 1").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_copy_that_was_dropped_makes_the_connection_refuse_and_not_answer_wrongly() {
    let mut raw = connect().await;
    let sql = "copy (select g from generate_series(1, 100) g) to stdout";
    drop(raw.copy_out(sql, TupleForm::PgText).await.unwrap());
    let error = raw.simple_query("select 1").await.unwrap_err();
    assert!(error.to_string().contains("in the middle of another command"), "{error}");
}

#[tokio::test]
async fn a_dropped_future_of_next_loses_nothing() {
    let mut raw = connect().await;
    let budget = Budget::new(64 << 20);
    let sql = "copy (select g from generate_series(1, 100000) g) to stdout";
    let mut copy = raw.copy_out(sql, TupleForm::PgText).await.unwrap();
    let mut rows = Vec::new();
    let mut polls = 0_u32;
    loop {
        // Drops the future after one poll, two polls, three polls and so on, until it is ready.
        polls += 1;
        let mut next = Box::pin(copy.next(16 * 1024, &budget));
        let mut left = polls % 4;
        let outcome = std::future::poll_fn(|cx| match next.as_mut().poll(cx) {
            std::task::Poll::Ready(result) => std::task::Poll::Ready(Some(result)),
            std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
            std::task::Poll::Pending => {
                left -= 1;
                std::task::Poll::Pending
            }
        })
        .await;
        match outcome {
            None => {}
            Some(result) => match result.unwrap() {
                Some((tuples, _)) => rows.extend(tuples.rows().map(<[u8]>::to_vec)),
                None => break,
            },
        }
    }
    assert_eq!(rows.len(), 100_000);
    assert!(
        rows.iter().enumerate().all(|(index, row)| *row == format!("{}\n", index + 1).as_bytes())
    );
}

#[tokio::test]
async fn the_wrong_kind_of_statement_is_an_error_that_leaves_the_connection_usable() {
    let mut raw = connect().await;
    let error = raw.copy_out("select 1", TupleForm::PgText).await.map(drop).unwrap_err();
    assert!(
        error.to_string().contains("DataRow") || error.to_string().contains("not COPY"),
        "{error}"
    );
    let mut raw = connect().await;
    let error =
        raw.copy_out("copy nowhere to stdout", TupleForm::PgText).await.map(drop).unwrap_err();
    assert_eq!(error.sqlstate(), Some("42P01"));
    assert_eq!(raw.simple_query("select 1").await.unwrap().len(), 1);
}
