// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! FileDiff into a file that has changed since they were recorded.

use super::*;

/// Lines that say something, `prefix` and a number.
fn lines(prefix: &str, count: usize) -> Vec<String> {
    (1..=count)
        .map(|number| format!("{prefix} {number}"))
        .collect()
}

fn text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// FileDiff of single lines, as they are recorded from a file.
fn recorded(file: &[String], insertions: &[(usize, &str)]) -> FileDiff {
    let mut patch = FileDiff {
        path: "x".into(),
        ..FileDiff::default()
    };
    patch
        .hunks
        .extend(insertions.iter().map(|(after, line)| Hunk {
            after: *after,
            lines: vec![(*line).to_owned()],
            ..Hunk::default()
        }));
    patch.look_around(&text(file));
    patch
}

/// The lines of a file with the insertions.
fn placed(patch: &FileDiff, file: &[String]) -> Vec<String> {
    let placed = patch.place(&text(file)).unwrap();
    placed.content.lines().map(str::to_owned).collect()
}

/// Why the only insertion that has no place has none.
fn unplaced(patch: &FileDiff, file: &[String]) -> Unplaced {
    let mut unplaced = patch.place(&text(file)).unwrap_err();
    assert_eq!(unplaced.len(), 1, "{unplaced:?}");
    unplaced.remove(0)
}

#[test]
fn into_the_same_file_they_go_where_they_were() {
    let file = lines("line", 20);
    let patch = recorded(&file, &[(0, "first"), (7, "middle"), (20, "last")]);
    let placed = patch.place(&text(&file)).unwrap();
    let mut wanted = file;
    wanted.push("last".into());
    wanted.insert(7, "middle".into());
    wanted.insert(0, "first".into());
    assert_eq!(placed.content, text(&wanted));
    assert_eq!((placed.lines, placed.moves), (3, vec![0, 0, 0]));
    assert!(placed.more.is_empty());
}

#[test]
fn they_move_with_the_lines_around_them() {
    let file = lines("line", 30);
    let patch = recorded(&file, &[(5, "a"), (20, "b")]);
    // The second half has come first, is indented, and there is something above all.
    let moved = file[15..].iter().map(|line| format!("    {line}"));
    let mut changed = lines("new", 40);
    changed.extend(moved);
    changed.extend_from_slice(&file[..15]);
    let new = placed(&patch, &changed);
    assert_eq!(new[45..47], ["b".to_owned(), "    line 21".to_owned()]);
    assert_eq!(new[61..63], ["a".to_owned(), "line 6".to_owned()]);
    assert_eq!(patch.place(&text(&changed)).unwrap().moves, [55, 25]);
}

#[test]
fn one_side_is_enough() {
    let file = lines("line", 30);
    let patch = recorded(&file, &[(15, "ours")]);
    for changed in [0..15, 15..30] {
        let mut file = file.clone();
        for line in &mut file[changed] {
            line.insert_str(0, "another ");
        }
        assert_eq!(placed(&patch, &file)[15], "ours");
        // So it is if lines are gone, or have come.
        file.drain(..4);
        file.insert(0, "new".into());
        assert_eq!(placed(&patch, &file)[12], "ours");
    }
}

#[test]
fn what_is_left_of_both_sides_is_enough_if_it_is_half() {
    let file = lines("line", 30);
    let patch = recorded(&file, &[(15, "ours")]);
    let mut changed = file.clone();
    changed[11] = "another".into();
    changed[18] = "another".into();
    assert_eq!(placed(&patch, &changed)[15], "ours");
    changed[17] = "another".into();
    let why = unplaced(&patch, &changed).why;
    assert!(
        why.contains("after line 15, has 5 of the 12 lines"),
        "{why}"
    );
}

#[test]
fn what_is_gone_is_named() {
    let file = lines("line", 30);
    let mut patch = recorded(&file, &[(3, "a"), (25, "    ours {")]);
    patch.hunks[1]
        .lines
        .insert(0, "    #[cfg(feature = \"x\")]".into());
    let unplaced = unplaced(&patch, &file[..12]);
    assert_eq!(unplaced.heading, "ours {");
    assert_eq!(unplaced.after, 25);
    assert_eq!(unplaced.around, patch.hunks[1].around);
    assert!(
        unplaced.why.contains("none of the 11 lines"),
        "{}",
        unplaced.why
    );
}

#[test]
fn what_could_go_to_several_places_is_refused() {
    let file = lines("line", 30);
    let patch = recorded(&file, &[(15, "ours")]);
    let mut twice = file.clone();
    twice.extend_from_slice(&file);
    let why = unplaced(&patch, &twice).why;
    assert!(why.contains("any of the lines 15, 45"), "{why}");
    // The one that has more is it.
    twice[5] = "another".into();
    twice[20] = "another".into();
    twice[19] = "another".into();
    assert_eq!(placed(&patch, &twice)[45], "ours");
}

#[test]
fn two_are_not_put_at_one_place() {
    let mut file = lines("line", 10);
    file.extend(lines("tail", 6));
    file.extend(lines("more", 10));
    file.extend(lines("tail", 6));
    let patch = recorded(&file, &[(10, "a"), (26, "b")]);
    assert_eq!(placed(&patch, &file)[27], "b");
    // Where the second was there is something else: it would go to the first's place, as nothing else is like it.
    file.truncate(18);
    let unplaced = unplaced(&patch, &file);
    assert_eq!(unplaced.heading, "b");
    assert!(
        unplaced.why.contains("another change goes after line 10"),
        "{}",
        unplaced.why
    );
}

#[test]
fn braces_are_no_place() {
    let mut file = lines("line", 8);
    file.extend(["}", "", "}", "", "}", "", "}", "", "}", "", "}", ""].map(str::to_owned));
    let patch = recorded(&file, &[(14, "ours")]);
    let why = unplaced(&patch, &file).why;
    assert!(why.contains("none of the 12 lines"), "{why}");
}

#[test]
fn a_place_more_gets_what_all_places_get() {
    let value = |name: &str| {
        let mut lines = lines(name, 6);
        lines.extend(["a: None,", "b: None,", "}", ""].map(str::to_owned));
        lines
    };
    let file: Vec<_> = ["one", "two"].iter().flat_map(|name| value(name)).collect();
    let patch = recorded(&file, &[(8, "ours: None,"), (18, "ours: None,")]);
    assert_eq!(placed(&patch, &file).len(), 22);
    let mut longer = value("three");
    longer.extend(file);
    longer.push("a: None,".into());
    let new = patch.place(&text(&longer)).unwrap();
    assert_eq!(new.more, [8]);
    assert_eq!(new.lines, 3);
    assert_eq!(new.content.lines().nth(8), Some("ours: None,"));
    assert_eq!(new.content.matches("ours: None,").count(), 3);
}

#[test]
fn a_last_line_without_an_end_stays_the_last() {
    let file = lines("line", 10);
    let patch = recorded(&file, &[(10, "ours")]);
    let content = text(&file);
    let why = patch.place(content.trim_end()).unwrap_err().remove(0).why;
    assert!(why.contains("does not end"), "{why}");
    let patch = recorded(&file, &[(9, "ours")]);
    let placed = patch.place(content.trim_end()).unwrap();
    assert!(placed.content.ends_with("ours\nline 10"));
}
