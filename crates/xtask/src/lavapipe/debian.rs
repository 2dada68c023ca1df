//! What has to be known of Debian and Ubuntu: releases, apt's sources, the dependencies of packages.

use std::collections::{BTreeMap, BTreeSet};

/// The release of a system, from `/etc/os-release`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Release {
    /// Name in apt's sources, such as `bookworm`.
    pub(super) codename: String,
    /// The parts of the archive, the release itself first.
    pub(super) suites: Vec<String>,
    /// Sections of the archive.
    pub(super) components: &'static str,
}

impl Release {
    /// Reads `/etc/os-release`; nothing if it is neither Debian, nor Ubuntu, nor built on Ubuntu.
    pub(super) fn parse(text: &str) -> Option<Release> {
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            Some(value.trim_matches(['"', '\'']).to_owned())
        };
        let (codename, components) = match field("ID").as_deref() {
            Some("debian") => (field("VERSION_CODENAME")?, "main"),
            _ => (field("UBUNTU_CODENAME")?, "main universe"),
        };
        // Debian 12 is too old for lavapipe 25 without its backports.
        let newer = if codename == "bookworm" { "backports" } else { "updates" };
        let suites = vec![codename.clone(), format!("{codename}-{newer}")];
        Some(Release { codename, suites, components })
    }
}

/// A place that packages come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// What signs its lists, as written: a path, or a key on lines of its own.
    signed_by: Option<String>,
}

impl Source {
    /// Reads a `.sources` file: stanzas of fields.
    pub(super) fn parse_stanzas(text: &str) -> Vec<Source> {
        let text: String =
            text.lines().filter(|line| !line.starts_with('#')).map(|line| line.to_owned() + "\n").collect();
        text.split("\n\n").filter_map(|stanza| Source::from_fields(&fields(stanza))).collect()
    }

    fn from_fields(fields: &BTreeMap<String, String>) -> Option<Source> {
        let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
        let words = |name: &str| field(name).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        if field("enabled") == "no" || !words("types").iter().any(|kind| kind == "deb") {
            return None;
        }
        let signed_by = fields.get("signed-by").cloned();
        Some(Source { uris: words("uris"), suites: words("suites"), components: words("components"), signed_by })
    }

    /// Reads a `.list` file: lines `deb [option=value …] URI suite component…`.
    pub(super) fn parse_lines(text: &str) -> Vec<Source> {
        let lines = text.lines().filter_map(|line| line.split('#').next()?.trim().strip_prefix("deb"));
        lines.filter(|line| line.starts_with(char::is_whitespace)).filter_map(Source::from_line).collect()
    }

    fn from_line(line: &str) -> Option<Source> {
        let line = line.trim_start();
        let (options, rest) = match line.strip_prefix('[') {
            Some(line) => line.split_once(']')?,
            None => ("", line),
        };
        let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        let mut words = rest.split_whitespace().map(str::to_owned);
        Some(Source {
            uris: vec![words.next()?],
            suites: vec![words.next()?],
            components: words.collect(),
            signed_by: signed_by.map(|keys| keys.replace(',', " ")),
        })
    }

    /// The source of the distribution itself among all that apt is set up with. Others may serve a suite of the same
    /// name, so the place is looked at too.
    pub(super) fn of_release<'a>(sources: &'a [Source], release: &Release) -> Option<&'a Source> {
        let serves = |source: &&Source| {
            let suite = |suite: &String| *suite == release.codename;
            source.mirrors().next().is_some()
                && source.suites.iter().any(suite)
                && source.components[..].contains(&"main".into())
        };
        let is_own = |source: &&Source| {
            let has_updates = source.suites.iter().any(|suite| *suite == format!("{}-updates", release.codename));
            let own_path = |uri: &String| {
                matches!(uri.trim_end_matches('/').rsplit('/').next(), Some("debian" | "ubuntu" | "ubuntu-ports"))
            };
            has_updates || source.mirrors().any(own_path)
        };
        let serving = || sources.iter().filter(serves);
        serving().find(is_own).or_else(|| serving().next())
    }

    /// Only what is fetched over the network.
    fn mirrors(&self) -> impl Iterator<Item = &String> {
        self.uris.iter().filter(|uri| ["http://", "https://", "mirror+"].iter().any(|scheme| uri.starts_with(scheme)))
    }

    /// A `.sources` file for a release, with this source's mirrors and keys.
    pub(super) fn for_release(&self, release: &Release) -> String {
        let mirrors = self.mirrors().map(String::as_str).collect::<Vec<_>>().join(" ");
        let signed_by = self.signed_by.as_ref().map(|keys| format!("Signed-By: {keys}\n")).unwrap_or_default();
        let (suites, components) = (release.suites.join(" "), release.components);
        format!("Types: deb\nURIs: {mirrors}\nSuites: {suites}\nComponents: {components}\n{signed_by}")
    }
}

/// The fields of a stanza by their names in lower case. Lines that go on with one keep their ends.
fn fields(stanza: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut last = String::new();
    for line in stanza.lines() {
        if line.starts_with([' ', '\t']) {
            let value: &mut String = fields.entry(last.clone()).or_default();
            value.push('\n');
            value.push_str(line);
        } else if let Some((name, value)) = line.split_once(':') {
            last = name.to_ascii_lowercase();
            fields.insert(last.clone(), value.trim().to_owned());
        }
    }
    fields
}

/// What `dpkg-query` is asked for each package; [`Installed::parse`] reads it.
pub(super) const INSTALLED_FORMAT: &str = "${Package}\t${Architecture}\t${Version}\t${db:Status-Status}\t${Provides}\n";

/// The installed packages, and the names that they provide besides their own, with their versions if they have any.
#[derive(Clone, Debug, Default)]
pub(super) struct Installed(BTreeMap<String, Vec<Option<String>>>);

impl Installed {
    /// Reads what `dpkg-query` prints with [`INSTALLED_FORMAT`], for one architecture.
    pub(super) fn parse(text: &str, architecture: &str) -> Installed {
        let mut installed = Installed::default();
        for line in text.lines() {
            let columns: Vec<&str> = line.split('\t').collect();
            let [package, of, version, "installed", provides] = columns[..] else { continue };
            if of != architecture && of != "all" {
                continue;
            }
            installed.0.entry(package.into()).or_default().push(Some(version.into()));
            for dependency in provides.split(',').filter_map(Dependency::parse) {
                let version = dependency.version.map(|(_, version)| version.to_owned());
                installed.0.entry(dependency.package.into()).or_default().push(version);
            }
        }
        installed
    }

    /// The packages to add, by name, so that `depends` (the field of a package) is satisfied; of alternatives the
    /// first. `holds` compares versions: `holds("1.0", ">=", "0.9")`.
    pub(super) fn missing(&self, depends: &str, holds: impl Fn(&str, &str, &str) -> bool) -> BTreeSet<String> {
        let satisfied = |dependency: &Dependency<'_>| {
            let versions = self.0.get(dependency.package).map(Vec::as_slice).unwrap_or_default();
            versions.iter().any(|version| match (version, dependency.version) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(version), Some((relation, wanted))) => holds(version, relation, wanted),
            })
        };
        let groups = depends.split(',').map(|group| group.split('|').filter_map(Dependency::parse).collect::<Vec<_>>());
        let missing = groups.filter(|alternatives| !alternatives.iter().any(satisfied));
        missing.filter_map(|alternatives| Some(alternatives.first()?.package.to_owned())).collect()
    }
}

/// `libdrm2 (>= 2.4.121)`.
#[derive(Clone, Copy, Debug)]
struct Dependency<'a> {
    package: &'a str,
    version: Option<(&'a str, &'a str)>,
}

impl<'a> Dependency<'a> {
    fn parse(text: &'a str) -> Option<Dependency<'a>> {
        let (name, rest) = text.split_once('(').unwrap_or((text, ""));
        let package = name.split(['[', ':']).next()?.trim();
        let version = rest.split(')').next()?.trim().split_once(char::is_whitespace);
        (!package.is_empty()).then_some(Dependency { package, version })
    }
}

/// The number in front of the first dot of a package's version, after its epoch.
pub(super) fn major_version(version: &str) -> Option<u32> {
    let upstream = version.rsplit_once(':').map_or(version, |(_, upstream)| upstream);
    upstream.split(['.', '-', '+', '~']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";
    const NOBLE: &str = "ID=linuxmint\nVERSION_CODENAME=wilma\nUBUNTU_CODENAME=noble\n";

    fn bookworm() -> Release {
        Release::parse(BOOKWORM).expect("Debian 12")
    }

    #[test]
    fn releases() {
        assert_eq!(bookworm().suites, ["bookworm", "bookworm-backports"]);
        let noble = Release::parse(NOBLE).expect("built on Ubuntu");
        assert_eq!((noble.suites.join(" ").as_str(), noble.components), ("noble noble-updates", "main universe"));
        assert_eq!(Release::parse("ID=fedora\nVERSION_ID=42\n"), None);
        assert_eq!(Release::parse("ID=debian\n"), None, "no codename");
    }

    #[test]
    fn sources_in_stanzas() {
        let text = "# Debian\nTypes: deb deb-src\nURIs: https://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main contrib\nSigned-By: /usr/share/keyrings/debian.gpg\n# a remark\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n\n\
                    Types: deb\nURIs: http://other.example\nSuites: bookworm\nComponents: main\n";
        let sources = Source::parse_stanzas(text);
        assert_eq!(sources.len(), 2);
        let expected = "Types: deb\nURIs: https://mirror.example/debian\nSuites: bookworm bookworm-backports\n\
                        Components: main\nSigned-By: /usr/share/keyrings/debian.gpg\n";
        let source = Source::of_release(&sources, &bookworm()).expect("the first");
        assert_eq!(source.for_release(&bookworm()), expected);
    }

    #[test]
    fn a_key_inside_a_stanza_stays() {
        let key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ\n -----END PGP PUBLIC KEY BLOCK-----";
        let text = format!(
            "Types: deb\nURIs: http://m.example/debian/\nSuites: bookworm\nComponents: main\nSigned-By:{key}\n"
        );
        let sources = Source::parse_stanzas(&text);
        let file = Source::of_release(&sources, &bookworm()).expect("one").for_release(&bookworm());
        assert!(file.ends_with(&format!("Signed-By: {key}\n")), "{file}");
        assert_eq!(Source::parse_stanzas(&file)[0].signed_by, sources[0].signed_by);
    }

    #[test]
    fn sources_in_lines() {
        let text = "deb http://packages.example/debian/12/prod bookworm main # not the distribution\n\
                    deb-src http://deb.debian.org/debian bookworm main\n\
                    deb cdrom:[Debian]/ bookworm main\n\
                    #deb http://no.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/a.gpg,/b.gpg] http://deb.debian.org/debian/ bookworm main non-free\n";
        let sources = Source::parse_lines(text);
        assert_eq!(sources.len(), 3);
        let source = Source::of_release(&sources, &bookworm()).expect("the last");
        assert!(source.for_release(&bookworm()).contains("URIs: http://deb.debian.org/debian/\n"));
        assert_eq!(source.signed_by.as_deref(), Some("/a.gpg /b.gpg"));
        assert_eq!(Source::of_release(&sources[1..2], &bookworm()), None, "a disc is no mirror");
        let noble = Release::parse(NOBLE).expect("built on Ubuntu");
        assert_eq!(Source::of_release(&sources, &noble), None, "of another release");
    }

    #[test]
    fn what_is_missing() {
        let text = "libdrm2\tamd64\t2.4.114-1\tinstalled\t\n\
                    libelf1t64\tamd64\t0.190\tinstalled\tlibelf1 (= 0.190), libelf-plain\n\
                    libexpat1\tamd64\t2.5\tconfig-files\t\n\
                    zlib1g\ti386\t1.3\tinstalled\t\n\
                    libc6\tamd64\t2.36\tinstalled\t\n";
        let installed = Installed::parse(text, "amd64");
        let missing = |depends: &str| {
            let holds = |have: &str, relation: &str, wanted: &str| relation != ">=" || have >= wanted;
            installed.missing(depends, holds).into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(missing(""), "");
        assert_eq!(missing("libc6 (>= 2.34), libdrm2 (>= 2.4.121), libelf1 (>= 0.142)"), "libdrm2");
        assert_eq!(missing("libexpat1 (>= 2.0.1), zlib1g:any, libelf-plain"), "libexpat1 zlib1g");
        assert_eq!(missing("libelf-plain (>= 0.1)"), "libelf-plain", "provided without a version");
        assert_eq!(missing("a | b, a | libc6"), "a");
    }

    #[test]
    fn versions() {
        let cases = [("25.0.7-2~bpo12+1", Some(25)), ("1:24.2.8-1", Some(24)), ("x", None)];
        for (version, major) in cases {
            assert_eq!(major_version(version), major, "{version}");
        }
    }
}
