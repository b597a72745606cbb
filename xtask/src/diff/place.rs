// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finds the places of changes in a file that may not be the one that they were recorded from.
//!
//! Each change knows hashes of the lines around it. Of all places in the file, that have just the lines which it
//! removes, if it does, it goes to the one with the most of the lines around it next to it, without a gap, on both
//! sides together. That must be one place alone, and the lines must say enough. So lines may have come or gone
//! elsewhere, a block may have moved, and one of a change's sides may look different.
//!
//! The same lines are often inserted in several places of a file, as a field into each value of a structure. A place
//! that was not there when they were recorded gets them, too, if it has around it all that these places have in
//! common.

use std::fmt;

use sha2::{Digest, Sha256};

use super::{FileDiff, Hunk};

/// How many lines on each side are recorded.
const REACH: usize = 6;
/// How many lines have to be found again that have a letter or a digit: a brace or an empty line is everywhere.
const MIN_TELLING: usize = 2;
/// Hexadecimal digits of a line's hash.
const DIGITS: usize = 8;

/// Hashes of the lines around a place, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    before: Vec<String>,
    after: Vec<String>,
}

impl Neighbours {
    /// What is around the place after that many lines, of which the next `removed` are part.
    pub fn of(lines: &[&str], place: usize, removed: usize) -> Self {
        let hashes = |lines: &[&str]| lines.iter().copied().map(hash).collect();
        let before = &lines[..place.min(lines.len())];
        let after = &lines[(place + removed).min(lines.len())..];
        Self {
            before: hashes(&before[before.len().saturating_sub(REACH)..]),
            after: hashes(&after[..after.len().min(REACH)]),
        }
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let side = |text: &str| {
            let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let is_hash = |word: &String| word.len() == DIGITS && word.bytes().all(is_digit);
            let words: Vec<_> = text.split_ascii_whitespace().map(str::to_owned).collect();
            words.iter().all(is_hash).then_some(words)
        };
        let (before, after) = text.split_once('|')?;
        let (before, after) = (side(before)?, side(after)?);
        (!before.is_empty() || !after.is_empty()).then_some(Self { before, after })
    }

    fn len(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// What is around two places.
    fn common(&self, other: &Self) -> Self {
        let before = self.before.iter().rev().zip(other.before.iter().rev());
        let before = before.take_while(|(a, b)| a == b).count();
        let after = self.after.iter().zip(&other.after);
        let after = after.take_while(|(a, b)| a == b).count();
        Self {
            before: self.before[self.before.len() - before..].to_vec(),
            after: self.after[..after].to_vec(),
        }
    }
}

impl fmt::Display for Neighbours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for hash in &self.before {
            write!(f, " {hash}")?;
        }
        write!(f, " |")?;
        for hash in &self.after {
            write!(f, " {hash}")?;
        }
        Ok(())
    }
}

/// A line's hash. A block may have been indented.
fn hash(line: &str) -> String {
    let digest = Sha256::digest(line.trim());
    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hash[..DIGITS].to_owned()
}

/// How much of what an insertion looks for is around a place; more is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    /// Lines with a letter or a digit.
    telling: usize,
    lines: usize,
    /// Whether all of one side is there.
    is_side: bool,
}

/// A file in which insertions are to be placed.
struct Target<'a> {
    lines: Vec<&'a str>,
    hashes: Vec<String>,
}

impl Target<'_> {
    /// What is around a place of which the next `removed` lines are part. These count, too.
    fn look(&self, place: usize, removed: usize, wanted: &Neighbours) -> Found {
        let (before, after) = (&self.hashes[..place], &self.hashes[place + removed..]);
        let before = before.iter().rev().zip(wanted.before.iter().rev());
        let before = before.take_while(|(a, b)| a == b).count();
        let after = after.iter().zip(&wanted.after);
        let after = after.take_while(|(a, b)| a == b).count();
        let lines = &self.lines[place - before..place + removed + after];
        let is_telling = |line: &&&str| line.contains(char::is_alphanumeric);
        Found {
            telling: lines.iter().filter(is_telling).count(),
            lines: lines.len(),
            is_side: (before > 0 && before == wanted.before.len())
                || (after > 0 && after == wanted.after.len()),
        }
    }

    fn places(&self) -> std::ops::RangeInclusive<usize> {
        0..=self.lines.len()
    }

    /// The one place for an insertion, or why there is none.
    fn place(&self, hunk: &Hunk) -> Result<usize, String> {
        let wanted = &hunk.around;
        let removed = hunk.removed.len();
        let has_removed = |place: &usize| {
            let there = self.lines.get(*place..*place + removed);
            there.is_some_and(|there| there == hunk.removed)
        };
        let mut best = Found::default();
        let mut places = Vec::new();
        for place in self.places().filter(has_removed) {
            let found = self.look(place, removed, wanted);
            if found > best {
                best = found;
                places.clear();
            }
            if found == best {
                places.push(place);
            }
        }
        let all = wanted.len() + removed;
        if best.telling < MIN_TELLING || !(best.is_side || 2 * best.lines >= all) {
            return Err(if best.telling == 0 {
                format!("none of the {all} lines around it is there")
            } else {
                let (place, lines) = (places[0], best.lines);
                format!(
                    "the likeliest place, after line {place}, has {lines} of the {all} lines around it"
                )
            });
        }
        match places[..] {
            [place] => Ok(place),
            _ => Err(format!(
                "it could go after any of the lines {}",
                list(&places)
            )),
        }
    }
}

/// The changes' places in a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Placed {
    /// The file with the changes.
    pub content: String,
    /// How many lines were inserted.
    pub lines: usize,
    /// By how many lines each change has moved, in their order.
    pub moves: Vec<usize>,
    /// After which lines there are insertions more than were recorded.
    pub more: Vec<usize>,
}

/// A change that has no place.
#[derive(Debug, PartialEq, Eq)]
pub struct Unplaced {
    /// The first of our lines, or of those that are removed.
    pub heading: String,
    /// After how many lines it was when it was recorded.
    pub after: usize,
    /// What was looked for.
    pub around: Neighbours,
    pub why: String,
}

impl FileDiff {
    /// Makes all changes in a file; or tells which cannot be.
    pub fn place(&self, content: &str) -> Result<Placed, Vec<Unplaced>> {
        let lines: Vec<_> = content.lines().collect();
        let hashes = lines.iter().copied().map(hash).collect();
        let target = Target { lines, hashes };
        let mut unplaced = Vec::new();
        let mut moves = Vec::new();
        // By place; there may be two at one, for now.
        let mut places: Vec<(usize, &Hunk)> = Vec::new();
        let is_cut = !content.is_empty() && !content.ends_with('\n');
        for hunk in &self.hunks {
            let place = target.place(hunk).and_then(|place| {
                if is_cut && place == target.lines.len() {
                    Err("it is to go after the last line, which does not end".to_owned())
                } else {
                    Ok(place)
                }
            });
            match place {
                Ok(place) => {
                    places.push((place, hunk));
                    moves.push(place.abs_diff(hunk.after));
                }
                Err(why) => unplaced.push(Unplaced::new(hunk, why)),
            }
        }
        places.sort_by_key(|(place, _)| *place);
        for pair in places.windows(2) {
            if pair[0].0 == pair[1].0 || pair[0].0 + pair[0].1.removed.len() > pair[1].0 {
                let why = format!("another change goes after line {}, too", pair[1].0);
                unplaced.push(Unplaced::new(pair[1].1, why));
            }
        }
        if !unplaced.is_empty() {
            return Err(unplaced);
        }

        let mut more = Vec::new();
        for (hunk, common) in self.repeated() {
            for place in target.places() {
                let is_taken = places.iter().any(|(taken, _)| *taken == place);
                if !is_taken && target.look(place, 0, &common).lines == common.len() {
                    more.push(place);
                    places.push((place, hunk));
                }
            }
        }
        more.sort_unstable();
        places.sort_by_key(|(place, _)| *place);
        let lines = places.iter().map(|(_, hunk)| hunk.lines.len()).sum();
        let mut new = String::with_capacity(content.len());
        let mut places = places.into_iter().peekable();
        // How many lines are still to be left out.
        let mut removed = 0;
        for (number, line) in std::iter::once("")
            .chain(content.split_inclusive('\n'))
            .enumerate()
        {
            if removed == 0 {
                new += line;
            } else {
                removed -= 1;
            }
            while let Some((_, hunk)) = places.next_if(|(place, _)| *place == number) {
                for line in &hunk.lines {
                    new = new + line + "\n";
                }
                removed = hunk.removed.len();
            }
        }
        Ok(Placed {
            content: new,
            lines,
            moves,
            more,
        })
    }

    /// What is inserted more than once, and what is around all places of it, if that says enough to tell more such.
    fn repeated(&self) -> Vec<(&Hunk, Neighbours)> {
        let mut repeated: Vec<(&Hunk, Neighbours, usize)> = Vec::new();
        for hunk in self.hunks.iter().filter(|hunk| hunk.removed.is_empty()) {
            let known = repeated
                .iter_mut()
                .find(|(known, ..)| known.lines == hunk.lines);
            if let Some((_, common, count)) = known {
                *common = common.common(&hunk.around);
                *count += 1;
            } else {
                repeated.push((hunk, hunk.around.clone(), 1));
            }
        }
        let repeated = repeated.into_iter();
        repeated
            .filter(|(_, common, count)| *count > 1 && common.len() >= MIN_TELLING)
            .map(|(hunk, common, _)| (hunk, common))
            .collect()
    }
}

impl Unplaced {
    fn new(hunk: &Hunk, why: String) -> Self {
        let heading = hunk
            .lines
            .iter()
            .chain(&hunk.removed)
            .map(|line| line.trim());
        let mut heading = heading.filter(|line| !line.is_empty() && !line.starts_with("#[cfg"));
        Self {
            heading: heading.next().unwrap_or_default().to_owned(),
            after: hunk.after,
            around: hunk.around.clone(),
            why,
        }
    }
}

/// The first few of some numbers.
fn list(numbers: &[usize]) -> String {
    let shown: Vec<_> = numbers.iter().take(5).map(usize::to_string).collect();
    let rest = if numbers.len() > shown.len() {
        ", ..."
    } else {
        ""
    };
    shown.join(", ") + rest
}

#[cfg(test)]
mod tests;
