//! The local record of a job.
