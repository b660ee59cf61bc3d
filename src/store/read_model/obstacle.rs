//! What stands in the way of a rebuild, in words for operators.

use std::fmt;

/// Something that cannot be carried over to a copy, or a privilege that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub(crate) kind: Kind,
    /// The table, qualified.
    pub(crate) table: String,
    /// The thing itself, qualified, with its kind: `view public.totals`.
    pub(crate) object: String,
    pub(crate) hinders: Hinders,
}

/// What an obstacle stands in the way of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hinders {
    /// Only a rebuild that swaps the tables.
    Swap,
    /// Only a rebuild that keeps the live tables and replaces their content.
    Copy,
    Both,
}

impl Obstacle {
    pub(crate) fn hinders_swap(&self) -> bool {
        self.hinders != Hinders::Copy
    }

    pub(crate) fn hinders_copy(&self) -> bool {
        self.hinders != Hinders::Swap
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $Kind:ident $name:literal: $sentence:literal, $remedy:literal;)+) => {
        /// The kind of an obstacle.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Kind {
            $($(#[$doc])* $Kind,)+
        }

        impl Kind {
            #[cfg(test)]
            pub(super) const ALL: &[Self] = &[$(Self::$Kind),+];

            /// The kind that the statements of this module call by this name.
            pub(super) fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$Kind),)+
                    _ => None,
                }
            }

            /// What is the matter, with `{object}` and `{table}`, and what to do.
            fn words(self) -> (&'static str, &'static str) {
                match self {
                    $(Self::$Kind => ($sentence, $remedy),)+
                }
            }
        }
    };
}

kinds! {
    /// A view, a function, a column's type, or anything else that depends on the table.
    Dependent "dependent": "{object} depends on table {table}", "drop it, and create it again after the rebuild";
    /// A foreign key of another table.
    Referring "referring": "{object} refers to table {table}", "drop it, and create it again after the rebuild";
    /// A foreign key to a table that the projection does not name.
    Referred "referred": "{object} on table {table} refers to a table that the projection does not name", "drop it, and create it again after the rebuild";
    /// A foreign key, or a deferrable constraint.
    DisabledCheck "disabled_check": "{object} is not checked as usual on table {table}, because its triggers are disabled", "enable it with ALTER TABLE … ENABLE TRIGGER ALL";
    Trigger "trigger": "{object} on table {table} does not fire for a copy", "drop it, and create it again after the rebuild";
    Policy "policy": "{object} belongs to table {table}", "drop it, and create it again after the rebuild";
    RowSecurity "row_security": "{object} is enabled for table {table}", "disable it with ALTER TABLE … DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY";
    /// Row-level security that applies to the executing role.
    HiddenRows "hidden_rows": "{object} hides rows of table {table} from the user", "connect as a role with BYPASSRLS, or disable it";
    Rule "rule": "{object} rewrites statements on table {table}", "drop it, and create it again after the rebuild";
    Publication "publication": "{object} publishes table {table}", "remove the table from it, and add it again after the rebuild";
    PublicationOfSchema "publication_of_schema": "{object} publishes the whole schema of table {table}", "remove the schema from it, and add it again after the rebuild";
    /// It would publish the copies as well.
    PublicationOfAll "publication_of_all": "{object} publishes all tables, table {table} and its copy as well", "replace it by a publication that names its tables";
    Subscription "subscription": "{object} writes to table {table}", "remove the table from the publication, and refresh the subscription";
    Parent "parent": "table {table} inherits from {object}", "detach it with ALTER TABLE … NO INHERIT (a partition: DETACH PARTITION), and attach it again after the rebuild";
    /// Its rows are a part of the table's content.
    Child "child": "{object} inherits from table {table}", "detach it with ALTER TABLE … NO INHERIT";
    Typed "typed": "table {table} is of the composite {object}", "make it an ordinary table with ALTER TABLE … NOT OF";
    Statistics "statistics": "{object} belongs to table {table}", "drop it, and create it again after the rebuild";
    Label "label": "{object} belongs to table {table}", "remove it, and set it again after the rebuild";
    Extension "extension": "table {table} depends on {object}", "remove it from the extension with ALTER EXTENSION … DROP (an index: ALTER INDEX … NO DEPENDS ON EXTENSION)";
    OfType "of_type": "{object} is said of the row type of table {table}", "remove it";
    RowType "row_type": "{object} uses the row type of table {table}", "use a type of its own";
    ArrayName "array_name": "{object} has the name that the array type of table {table} would get", "rename it";
    InvalidIndex "invalid_index": "{object} of table {table} is invalid", "drop it, or repair it with REINDEX";
    /// Another projection names the table, too.
    Claimed "claimed": "{object} names table {table} as well", "give each projection tables of its own";
    Gone "gone": "table {table} was dropped, renamed or moved in the meantime", "try again";
    /// The table's content cannot be replaced row by row.
    Unreplaceable "unreplaceable": "{object} acts on rows that are deleted from table {table}, whose rows cannot be updated in place \
        (it has no primary key, or another column that is GENERATED ALWAYS AS IDENTITY)", "give the table a primary key, make the column GENERATED BY DEFAULT, or make the foreign key NO ACTION";
    Ownership "ownership": "the user is not a member of {object}, which owns table {table}", "GRANT that role to the user, or set ORCHESTRATOR_OWNER_URL";
    CreateSchema "create_schema": "the user lacks CREATE on {object} (for the schema of the copies)", "grant it, or set ORCHESTRATOR_OWNER_URL";
    CreateTable "create_table": "the user lacks CREATE on {object} (for the copy of table {table})", "grant it, or set ORCHESTRATOR_OWNER_URL";
    Tablespace "tablespace": "the user lacks CREATE on {object} (for the copy of table {table})", "grant it, or set ORCHESTRATOR_OWNER_URL";
    Grantor "grantor": "the user is not a member of {object}, which has granted privileges on table {table}", "GRANT that role to the user, or revoke these privileges and grant them as the owner";
    /// A privilege on the table or on a sequence of it, for the replacement of its content.
    Write "write": "the user lacks {object} (to replace the content of table {table})", "grant it, or set ORCHESTRATOR_OWNER_URL";
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sentence, remedy) = self.kind.words();
        // The object comes last, because it may contain braces.
        let sentence = match sentence.split_once("{object}") {
            Some((before, after)) => {
                format!("{}{}{}", self.with_table(before), self.object, self.with_table(after))
            }
            None => self.with_table(sentence),
        };
        write!(f, "{sentence}: {remedy}")?;
        if self.hinders == Hinders::Swap { f.write_str(", or use --copy") } else { Ok(()) }
    }
}

impl Obstacle {
    fn with_table(&self, text: &str) -> String {
        text.replace("{table}", &self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_obstacle_says_what_it_is_and_what_to_do() {
        let shown = |kind, object: &str, hinders| {
            Obstacle { kind, table: "public.{object}".to_owned(), object: object.to_owned(), hinders }.to_string()
        };
        assert_eq!(
            shown(Kind::Dependent, "view public.\"{table}\"", Hinders::Swap),
            "view public.\"{table}\" depends on table public.{object}: drop it, and create it again after the rebuild, or use --copy"
        );
        assert_eq!(
            shown(Kind::Gone, "", Hinders::Both),
            "table public.{object} was dropped, renamed or moved in the meantime: try again"
        );
    }
}
