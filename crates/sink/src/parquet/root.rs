//! Where a lake lives: a local directory or a bucket with a prefix.
//!
//! **Invariant:** no path leaves the root; whatever [`Root::put_new`] or [`LakeFile`](super::file::LakeFile) names is
//! either there as a whole or not there at all, and on a local disk it is synced together with its directory before the
//! call returns.
//!
//! Paths are relative to the root, with `/` between segments made by [`names::encode`](super::names::encode).
//! S3: credentials come from the environment (static keys, web identity, container provider). The instance metadata
//! service is asked only where `AWS_METADATA_ENDPOINT` names it, and an endpoint on a link-local address is refused, so that a
//! mistaken or hostile setting cannot make us fetch secrets from there.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode};

use super::failure;
use crate::{Disposition, Error, Result};

/// The root of a lake.
#[derive(Clone)]
pub struct Root {
    place: Place,
    label: String,
}

#[derive(Clone)]
pub(super) enum Place {
    Local(PathBuf),
    Objects { store: Arc<dyn ObjectStore>, prefix: ObjectPath },
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({})", self.label)
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl Root {
    /// A root from `file:///absolute/path` or `s3://bucket/prefix`.
    ///
    /// # Errors
    /// The URL is neither, or S3 lacks credentials.
    pub fn from_url(url: &str) -> Result<Self> {
        if let Some(path) = url.strip_prefix("file://") {
            return Self::from_file_url(url, path);
        }
        if let Some(rest) = url.strip_prefix("s3://") {
            return Self::from_s3_url(url, rest);
        }
        Err(usage(format!("open the lake \"{}\"", without_credentials(url)))
            .hint("a lake is file:///absolute/path or s3://bucket/prefix"))
    }

    /// A local directory; it is created when a run is prepared.
    pub fn local(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let label = format!("file://{}", path.display());
        Self { place: Place::Local(path), label }
    }

    /// A prefix in an object store.
    pub fn objects(
        store: Arc<dyn ObjectStore>,
        prefix: ObjectPath,
        label: impl Into<String>,
    ) -> Self {
        Self { place: Place::Objects { store, prefix }, label: label.into() }
    }

    /// The directory, where the root is one.
    pub fn local_path(&self) -> Option<&Path> {
        match &self.place {
            Place::Local(path) => Some(path),
            Place::Objects { .. } => None,
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    fn from_file_url(url: &str, path: &str) -> Result<Self> {
        let path = percent_encoding::percent_decode_str(path)
            .decode_utf8()
            .map_err(|error| usage(format!("open the lake \"{url}\"")).because(error))?;
        let is_plain = path.starts_with('/')
            && !path.contains('\0')
            && path.split('/').all(|segment| segment != "..");
        if !is_plain || url.contains(['?', '#']) {
            return Err(usage(format!("open the lake \"{url}\"")).hint(
                "write file:// and an absolute path without \"..\", such as file:///srv/lake",
            ));
        }
        Ok(Self::local(path.as_ref()))
    }

    fn from_s3_url(url: &str, rest: &str) -> Result<Self> {
        let attempt = || format!("open the lake \"{}\"", without_credentials(url));
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || bucket.contains('@') || url.contains(['?', '#']) {
            return Err(
                usage(attempt()).hint("write s3://bucket/prefix; keys come from the environment")
            );
        }
        let prefix = ObjectPath::parse(prefix).map_err(|error| usage(attempt()).because(error))?;
        refuse_metadata_service(attempt())?;
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .build()
            .map_err(|error| usage(attempt()).because(error))?;
        Ok(Self::objects(Arc::new(store), prefix, url.to_owned()))
    }

    /// The path of an object for what is at `relative`.
    pub(super) fn object_path(prefix: &ObjectPath, relative: &str) -> ObjectPath {
        let joined = if prefix.as_ref().is_empty() {
            relative.to_owned()
        } else {
            format!("{prefix}/{relative}")
        };
        ObjectPath::parse(joined).expect("segments are encoded names")
    }

    /// Reads a small document; `None` if it is not there.
    pub(super) async fn read(&self, relative: &str) -> Result<Option<Bytes>> {
        let attempt = || format!("read {relative} of the lake {self}");
        match &self.place {
            Place::Local(root) => match fs::read(root.join(relative)) {
                Ok(bytes) => Ok(Some(bytes.into())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(failure::io(attempt(), error)),
            },
            Place::Objects { store, prefix } => {
                match store.get(&Self::object_path(prefix, relative)).await {
                    Ok(found) => found
                        .bytes()
                        .await
                        .map(Some)
                        .map_err(|error| failure::object_store(attempt(), error)),
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    Err(error) => Err(failure::object_store(attempt(), error)),
                }
            }
        }
    }

    /// Whether a document is there.
    pub(super) async fn exists(&self, relative: &str) -> Result<bool> {
        let attempt = || format!("look for {relative} of the lake {self}");
        match &self.place {
            Place::Local(root) => {
                root.join(relative).try_exists().map_err(|error| failure::io(attempt(), error))
            }
            Place::Objects { store, prefix } => {
                match store.head(&Self::object_path(prefix, relative)).await {
                    Ok(_) => Ok(true),
                    Err(object_store::Error::NotFound { .. }) => Ok(false),
                    Err(error) => Err(failure::object_store(attempt(), error)),
                }
            }
        }
    }

    /// The names of the files directly in a directory that begin with `start`. In an object store nothing before them is
    /// read: a directory may have a great many.
    pub(super) async fn file_names_from(
        &self,
        directory: &str,
        start: &str,
    ) -> Result<Vec<String>> {
        let Place::Objects { store, prefix } = &self.place else {
            let mut names = self.file_names(directory).await?;
            names.retain(|name| name.strip_prefix('.').unwrap_or(name).starts_with(start));
            return Ok(names);
        };
        let attempt = || format!("list {directory} of the lake {self}");
        let directory = Self::object_path(prefix, directory);
        // Behind the offset, hence one that sorts just before what is looked for.
        let offset = ObjectPath::parse(format!("{directory}/{}", start.trim_end_matches('-')))
            .expect("segments are encoded names");
        let mut listed = store.list_with_offset(Some(&directory), &offset);
        let mut names = Vec::new();
        while let Some(found) =
            listed.try_next().await.map_err(|error| failure::object_store(attempt(), error))?
        {
            names.extend(
                found.location.filename().filter(|name| name.starts_with(start)).map(str::to_owned),
            );
        }
        Ok(names)
    }

    /// Writes a small document, over the old one if there is one.
    pub(super) async fn put(&self, relative: &str, bytes: Vec<u8>) -> Result<()> {
        self.put_mode(relative, bytes, PutMode::Overwrite).await.map(|_| ())
    }

    /// Writes a small document unless it is there; says whether it was written.
    pub(super) async fn put_new(&self, relative: &str, bytes: Vec<u8>) -> Result<bool> {
        self.put_mode(relative, bytes, PutMode::Create).await
    }

    async fn put_mode(&self, relative: &str, bytes: Vec<u8>, mode: PutMode) -> Result<bool> {
        let attempt = format!("write {relative} of the lake {self}");
        match &self.place {
            Place::Local(root) => {
                let (root, relative) = (root.clone(), relative.to_owned());
                let is_new_only = mode == PutMode::Create;
                blocking(move || put_local(&root, &relative, &bytes, is_new_only))
                    .await
                    .map_err(|error| failure::io(attempt, error))
            }
            Place::Objects { store, prefix } => {
                let path = Self::object_path(prefix, relative);
                match store.put_opts(&path, bytes.into(), mode.into()).await {
                    Ok(_) => Ok(true),
                    Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
                    Err(error) => Err(failure::object_store(attempt, error)),
                }
            }
        }
    }

    /// Whether nothing at all is there.
    pub(super) async fn is_empty(&self) -> Result<bool> {
        let attempt = || format!("list the lake {self}");
        match &self.place {
            Place::Local(root) => match fs::read_dir(root) {
                // A file system of its own has this directory from the start.
                Ok(entries) => {
                    holds_nothing(entries).map_err(|error| failure::io(attempt(), error))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
                Err(error) => Err(failure::io(attempt(), error)),
            },
            Place::Objects { store, prefix } => {
                let first = store.list(Some(prefix)).try_next().await;
                first
                    .map(|first| first.is_none())
                    .map_err(|error| failure::object_store(attempt(), error))
            }
        }
    }

    /// The names of the files directly in a directory; none if it does not exist.
    pub(super) async fn file_names(&self, directory: &str) -> Result<Vec<String>> {
        let attempt = || format!("list {directory} of the lake {self}");
        match &self.place {
            Place::Local(root) => match fs::read_dir(root.join(directory)) {
                Ok(entries) => entries
                    .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                    .collect::<io::Result<_>>()
                    .map_err(|error| failure::io(attempt(), error)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
                Err(error) => Err(failure::io(attempt(), error)),
            },
            Place::Objects { store, prefix } => {
                let listed = store
                    .list_with_delimiter(Some(&Self::object_path(prefix, directory)))
                    .await
                    .map_err(|error| failure::object_store(attempt(), error))?;
                let names = listed.objects.iter().filter_map(|found| found.location.filename());
                Ok(names.map(str::to_owned).collect())
            }
        }
    }

    /// Removes a file; one that is not there is fine.
    pub(super) async fn remove(&self, relative: &str) -> Result<()> {
        let attempt = || format!("remove {relative} of the lake {self}");
        match &self.place {
            Place::Local(root) => match fs::remove_file(root.join(relative)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(failure::io(attempt(), error))
                }
                _ => Ok(()),
            },
            Place::Objects { store, prefix } => {
                match store.delete(&Self::object_path(prefix, relative)).await {
                    Err(error) if !matches!(error, object_store::Error::NotFound { .. }) => {
                        Err(failure::object_store(attempt(), error))
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Runs file work off the threads that serve sockets.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Makes a directory under `root` (which is made, too) and syncs each directory that got a new entry.
pub(super) fn create_directory(root: &Path, relative: &str) -> io::Result<PathBuf> {
    if !root.exists() {
        fs::create_dir_all(root)?;
        if let Some(parent) = root.parent() {
            File::open(parent)?.sync_all()?;
        }
    }
    let mut directory = root.to_owned();
    for segment in relative.split('/').filter(|segment| !segment.is_empty()) {
        let parent = directory.clone();
        directory.push(segment);
        match fs::create_dir(&directory) {
            Ok(()) => File::open(&parent)?.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(directory)
}

/// Whether a root has nothing but what comes with a file system and what a run leaves that died before its first document.
fn holds_nothing(entries: fs::ReadDir) -> io::Result<bool> {
    for entry in entries {
        let entry = entry?;
        let is_nothing = match entry.file_name().to_str() {
            Some("lost+found") => true,
            Some("_tidemark") => fs::read_dir(entry.path())?.all(|inner| {
                inner.is_ok_and(|inner| is_nothing_yet(&inner.file_name().to_string_lossy()))
            }),
            _ => false,
        };
        if !is_nothing {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a file in the directory of the documents says nothing.
fn is_nothing_yet(name: &str) -> bool {
    name == "lock" || is_unfinished_document(name)
}

/// Whether [`Root::put`] or [`Root::put_new`] was killed while it wrote this.
pub(super) fn is_unfinished_document(name: &str) -> bool {
    name.starts_with('.') && name.contains(".json.tmp-")
}

fn put_local(root: &Path, relative: &str, bytes: &[u8], is_new_only: bool) -> io::Result<bool> {
    let (directory, name) = relative.rsplit_once('/').unwrap_or(("", relative));
    let directory = create_directory(root, directory)?;
    let target = directory.join(name);
    let mut temporary =
        tempfile::Builder::new().prefix(&format!(".{name}.tmp-")).tempfile_in(&directory)?;
    make_readable(temporary.as_file())?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    if is_new_only {
        match temporary.persist_noclobber(&target) {
            Ok(_) => {}
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(error.error),
        }
    } else {
        temporary.persist(&target).map_err(|error| error.error)?;
    }
    File::open(&directory)?.sync_all()?;
    Ok(true)
}

/// Temporary files are private; what they become is read by other programs, as the directory allows.
pub(super) fn make_readable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

fn usage(attempt: impl Into<String>) -> Error {
    Error::new(Disposition::Usage, attempt)
}

/// `user:password@` has no place in a lake's URL; should it be there, it is not repeated.
fn without_credentials(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://***@{rest}"),
        _ => url.to_owned(),
    }
}

fn refuse_metadata_service(attempt: String) -> Result<()> {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_asked_for = set("AWS_METADATA_ENDPOINT");
    let has_keys = set("AWS_ACCESS_KEY_ID")
        || set("AWS_WEB_IDENTITY_TOKEN_FILE")
        || set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        || set("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        || set("AWS_SKIP_SIGNATURE");
    if !has_keys && !is_asked_for {
        return Err(usage(attempt).hint(
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a web identity); for the instance's own role name the \
             metadata service in AWS_METADATA_ENDPOINT",
        ));
    }
    for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"] {
        let is_link_local = std::env::var(name)
            .is_ok_and(|value| value.contains("//169.254.") || value.contains("//[fe80:"));
        if is_link_local {
            return Err(
                usage(attempt).hint(format!("{name} is a link-local address, not an S3 service"))
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_url_must_be_absolute_and_plain() {
        assert_eq!(
            Root::from_url("file:///srv/my%20lake").unwrap().local_path(),
            Some(Path::new("/srv/my lake"))
        );
        for url in
            ["file://srv/lake", "file:///a/../b", "file:///a?b", "ftp://x/y", "/plain", "s3:///x"]
        {
            let error = Root::from_url(url).unwrap_err();
            assert_eq!(error.disposition, Disposition::Usage, "{url}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_not_repeated() {
        let error = Root::from_url("s3://key:secret@bucket/x").unwrap_err();
        assert!(!format!("{error:?} {error}").contains("secret"));
    }
}
