//! What a victim is doing when it dies: the word it stores before each step, and how long a step takes.

macro_rules! states {
    ($($name:ident = $text:literal, $role:ident, $span_us:literal;)*) => {
        /// A step of a victim.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub(crate) enum State { Born, $($name),* }

        impl State {
            /// All that are counted.
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];

            /// How it is printed.
            pub(crate) fn text(self) -> &'static str {
                match self { Self::Born => "not begun", $(Self::$name => $text),* }
            }

            /// Whose step it is.
            pub(crate) fn role(self) -> Option<Role> {
                match self { Self::Born => None, $(Self::$name => Some(Role::$role)),* }
            }

            /// About the longest time from its start in which to shoot, ns.
            pub(crate) fn span_ns(self) -> u64 {
                match self { Self::Born => 1000, $(Self::$name => $span_us * 1000),* }
            }

            /// From the word in the ledger.
            pub(crate) fn from_word(word: u64) -> Self {
                Self::ALL.iter().copied().find(|state| *state as u64 == word).unwrap_or(Self::Born)
            }
        }
    };
}

/// What a victim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Role {
    /// Of either kind.
    Producer = 1,
    /// Of a queue.
    Consumer = 2,
    /// Of a broadcast ring.
    Member = 3,
}

impl Role {
    pub(crate) fn from_word(word: u64) -> Self {
        match word {
            1 => Self::Producer,
            2 => Self::Consumer,
            _ => Self::Member,
        }
    }

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Consumer => "consumer",
            Self::Member => "member",
        }
    }
}

states! {
    Creating = "creating", Producer, 1500;
    TakingOver = "taking over", Producer, 1500;
    Loaning = "loaning", Producer, 12;
    Waiting = "waiting for a slot", Producer, 2000;
    Writing = "writing", Producer, 12;
    Publishing = "publishing", Producer, 12;
    Abandoning = "abandoning a loan", Producer, 12;
    Burying = "taking dead letters", Producer, 20;
    Closing = "closing", Producer, 600;
    Attaching = "attaching", Consumer, 800;
    Idle = "parked", Consumer, 2000;
    Claiming = "claiming", Consumer, 12;
    Holding = "holding", Consumer, 300;
    Acking = "acking", Consumer, 12;
    AckedHolding = "acked, holding", Consumer, 300;
    Releasing = "releasing", Consumer, 12;
    Nacking = "nacking", Consumer, 12;
    Leaving = "leaving", Consumer, 200;
    Joining = "joining", Member, 800;
    MemberIdle = "parked", Member, 2000;
    Receiving = "receiving", Member, 12;
    MemberHolding = "holding", Member, 300;
    Settling = "releasing", Member, 12;
    MemberLeaving = "leaving", Member, 200;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_found_by_its_word() {
        for &state in State::ALL {
            assert_eq!(State::from_word(state as u64), state);
            assert!(state.role().is_some() && state.span_ns() > 0);
        }
    }
}
