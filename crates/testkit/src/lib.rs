//! Real clusters, workloads, fault proxy, oracle (development only).
