//! What a worker that registers does about a projection of which its code has another version than
//! the live read model. Pure.
//!
//! A higher version is deployed by a rebuild that the first worker with it asks for. Workers ask
//! for the rebuild of one version and build only once: if it has failed, was cancelled by a person,
//! or its result was reverted, a restart must not begin it again. Then only an operator does, or
//! another build. These do not count as a rebuild: one that was refused, because nothing was begun,
//! and one that was cancelled because of a higher version, because that one may be rolled back.
//!
//! A lower version never takes over.

/// What is known about such a projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deployed {
    pub(crate) projection: String,
    /// The version of the worker's code.
    pub(crate) version: i32,
    /// The version of the live read model.
    pub(crate) live: i32,
    /// The rebuild that is not finished. If there are several, that of the highest version.
    pub(crate) rebuild: Option<Unfinished>,
    /// The last rebuild of this version and build that counts and has ended.
    pub(crate) ended: Option<i64>,
}

/// A rebuild that is not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unfinished {
    /// The number of the command.
    pub(crate) id: i64,
    pub(crate) version: i32,
    /// The build that takes part in it, if only that one does.
    pub(crate) build: Option<String>,
}

/// What the worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deployment {
    /// Nothing: the live read model is newer.
    Older,
    /// It takes part in the rebuild that is not finished.
    TakesPart,
    /// It asks for a rebuild, and for the cancellation of the one that is not finished.
    Rebuild { replaces: bool },
    /// Nothing: this rebuild is not finished, and the worker cannot take part in it.
    Waits(i64),
    /// Nothing: this rebuild has ended.
    NotAgain(i64),
}

impl Deployed {
    /// Decides what a worker of this build does.
    pub(crate) fn decide(&self, build: Option<&str>) -> Deployment {
        if self.version <= self.live {
            return Deployment::Older;
        }
        match (&self.rebuild, self.ended) {
            (Some(rebuild), _) if rebuild.version > self.version => Deployment::Waits(rebuild.id),
            (Some(rebuild), ended) if rebuild.version == self.version => match (rebuild.build.as_deref(), build) {
                (None, _) => Deployment::TakesPart,
                (Some(of_rebuild), Some(own)) if of_rebuild == own => Deployment::TakesPart,
                (Some(_), Some(_)) if ended.is_none() => Deployment::Rebuild { replaces: true },
                (Some(_), _) => Deployment::Waits(rebuild.id),
            },
            (_, Some(ended)) => Deployment::NotAgain(ended),
            (rebuild, None) => Deployment::Rebuild { replaces: rebuild.is_some() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a worker of version 2 and this build does, while the live read model has version 1.
    fn decided(build: Option<&str>, rebuild: Option<(i32, Option<&str>)>, ended: Option<i64>) -> Deployment {
        let rebuild = rebuild.map(|(version, build)| Unfinished { id: 7, version, build: build.map(str::to_owned) });
        Deployed { projection: "orders".into(), version: 2, live: 1, rebuild, ended }.decide(build)
    }

    #[test]
    fn a_higher_version_is_rebuilt_once_for_each_build() {
        for build in [None, Some("a")] {
            assert_eq!(decided(build, None, None), Deployment::Rebuild { replaces: false });
            assert_eq!(decided(build, None, Some(3)), Deployment::NotAgain(3));
            assert_eq!(decided(build, Some((2, None)), None), Deployment::TakesPart);
            assert_eq!(decided(build, Some((2, None)), Some(3)), Deployment::TakesPart, "an operator began it again");
            assert_eq!(decided(build, Some((1, None)), None), Deployment::Rebuild { replaces: true });
            assert_eq!(decided(build, Some((1, Some("b"))), None), Deployment::Rebuild { replaces: true });
            assert_eq!(decided(build, Some((1, None)), Some(3)), Deployment::NotAgain(3));
            assert_eq!(decided(build, Some((3, None)), None), Deployment::Waits(7));
            assert_eq!(decided(build, Some((3, build)), Some(3)), Deployment::Waits(7));
        }
    }

    #[test]
    fn another_build_of_the_version_takes_its_place_once() {
        let of_b = Some((2, Some("b")));
        assert_eq!(decided(Some("b"), of_b, None), Deployment::TakesPart);
        assert_eq!(decided(Some("b"), of_b, Some(3)), Deployment::TakesPart);
        assert_eq!(decided(Some("a"), of_b, None), Deployment::Rebuild { replaces: true });
        assert_eq!(decided(Some("a"), of_b, Some(3)), Deployment::Waits(7), "two builds must not take turns");
        assert_eq!(decided(None, of_b, None), Deployment::Waits(7), "it may be the same build, or not");
    }

    #[test]
    fn a_lower_version_never_takes_over() {
        let rebuild = Some(Unfinished { id: 7, version: 2, build: None });
        for (version, live, rebuild) in [(1, 2, None), (2, 3, rebuild), (2, 2, None)] {
            let deployed = Deployed { projection: "orders".into(), version, live, rebuild, ended: None };
            assert_eq!(deployed.decide(None), Deployment::Older);
        }
    }
}
