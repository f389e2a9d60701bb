//! The two services of the application: what they write, and how they are told where to.
//!
//! **Invariant:** no transaction of one touches a table of the other, so that each may go over by itself.

/// One of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Target,
}

impl Side {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }
}

/// A part of the application, with tables of its own: a wave.
#[derive(Debug)]
pub(super) struct Service {
    /// What it does.
    pub(super) name: &'static str,
    /// The wave of its tables.
    pub(super) wave: &'static str,
    /// Where each transaction leaves its receipt.
    pub(super) receipts: &'static str,
    /// Connections.
    pub(super) writers: i32,
    /// What else its transactions do, in turn. `$1` is a number that no other writer has.
    pub(super) work: &'static [&'static [&'static str]],
    /// What goes with its receipts: a statement that gives 0 where it is there, whole and once. It makes keys as the writers do.
    pub(super) whole: (&'static str, &'static str),
}

/// The pilot's, then the others'.
pub(super) const SERVICES: [Service; 2] = [
    Service {
        name: "payments",
        wave: "pilot",
        receipts: "live.receipt",
        writers: 1,
        work: &[&["CALL live.transfer()"]],
        whole: (
            "one transfer for each receipt, and no balance lost",
            "SELECT abs((SELECT count(*) FROM live.ledger_copy) - (SELECT count(*) FROM live.receipt)) \
             + (SELECT abs(sum(balance) - 1000 * count(*)) FROM live.account)::bigint",
        ),
    },
    Service {
        name: "orders",
        wave: "rest",
        receipts: "public.receipt",
        writers: 2,
        work: &[NEW_ORDER, SHIP, CANCEL],
        whole: (
            "one order for each receipt of one",
            "SELECT count(*) FROM (SELECT 1000000000 + number / 3 * 2 + writer AS key FROM receipt WHERE number % 3 = 0) r \
             FULL JOIN (SELECT o_orderkey AS key FROM orders WHERE o_orderkey >= 1000000000) o USING (key) \
             WHERE r.key IS NULL OR o.key IS NULL",
        ),
    },
];

const NEW_ORDER: &[&str] = &[
    "INSERT INTO orders SELECT 1000000000 + $1::bigint, c_custkey, 'O', 100 + $1::bigint % 900, current_date, '1-URGENT', \
     'Clerk#000000001', 0, 'placed while it was moved' FROM customer WHERE c_custkey = 1 + $1::bigint % 15",
    "INSERT INTO lineitem SELECT 1000000000 + $1::bigint, ps_partkey, ps_suppkey, row_number() OVER (), 1, 100, 0, 0.05, 'N', 'O', \
     current_date, current_date, current_date, 'NONE', 'MAIL', 'new line' FROM partsupp WHERE ps_partkey = 1 + $1::bigint % 200",
    "UPDATE customer SET c_acctbal = c_acctbal - 1 WHERE c_custkey = 1 + $1::bigint % 15",
];
const SHIP: &[&str] = &[
    "UPDATE orders SET o_orderstatus = 'F' WHERE o_orderkey = 1000000000 + $1::bigint",
    "UPDATE lineitem SET l_linestatus = 'F', l_comment = 'shipped' WHERE l_orderkey = 1000000000 + $1::bigint",
];
const CANCEL: &[&str] = &[
    "DELETE FROM lineitem WHERE l_orderkey = 1 + $1::bigint",
    "DELETE FROM orders WHERE o_orderkey = 1 + $1::bigint",
];

/// The file in which the switch hook tells where a wave is.
pub(super) fn told_in(wave: &str) -> String {
    format!("side.{wave}")
}

/// The switch hook: it is run by `tidemark cutover` and `tidemark fallback`.
pub(super) const HOOK: &str = "#!/bin/sh\n\
    # Tells the service of a wave where to write from now on.\n\
    echo \"$TIDEMARK_SIDE\" > \"side.$TIDEMARK_WAVE.new\" && mv \"side.$TIDEMARK_WAVE.new\" \"side.$TIDEMARK_WAVE\"\n\
    echo \"$TIDEMARK_WAY: wave $TIDEMARK_WAVE writes to the $TIDEMARK_SIDE from $TIDEMARK_LSN on\"\n";
