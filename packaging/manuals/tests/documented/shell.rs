//! As much of a shell's grammar as it takes to find the commands of a line.

/// The lines of a text, each with its number; one that ends in a backslash with what follows it.
pub(crate) fn lines(text: &str) -> Vec<(usize, String)> {
    let (mut all, mut open): (Vec<(usize, String)>, bool) = (Vec::new(), false);
    for (number, line) in (1..).zip(text.lines()) {
        let (line, goes_on) = line.strip_suffix('\\').map_or((line, false), |line| (line, true));
        match all.last_mut().filter(|_| open) {
            Some((_, whole)) => *whole = format!("{whole} {}", line.trim_start()),
            None => all.push((number, line.to_owned())),
        }
        open = goes_on;
    }
    all
}

/// What stands between backticks in prose, also over the end of a line, each with the number of its line.
pub(crate) fn quoted(text: &str) -> Vec<(usize, String)> {
    let mut all = Vec::new();
    let (mut number, mut open): (usize, Option<(usize, String)>) = (1, None);
    let mut before = '\n';
    for letter in text.chars() {
        match (letter, &mut open) {
            ('`', None) => open = Some((number, String::new())),
            ('`', Some(_)) => all.extend(open.take()),
            // Two line ends are the end of a paragraph: that backtick was none that opens.
            ('\n', Some(_)) if before == '\n' => open = None,
            ('\n', Some((_, inside))) => inside.push(' '),
            (letter, Some((_, inside))) => inside.push(letter),
            (_, None) => {}
        }
        number += usize::from(letter == '\n');
        before = letter;
    }
    // A comment in code goes on after `///`, and a text after a backslash.
    let plain = |text: String| text.replace("///", " ").replace("//!", " ").replace('\\', " ");
    all.into_iter().map(|(number, inside)| (number, plain(inside))).collect()
}

/// The simple commands of a line, those within `$(…)` first, each without what only says how it is run.
pub(crate) fn commands(line: &str) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    let mut words = Vec::new();
    for token in tokens(line) {
        match token {
            Token::Word(word) => {
                let mut rest = word.as_str();
                while let Some((_, inner)) = rest.split_once("$(") {
                    let end = closing(inner);
                    all.extend(commands(&inner[..end]));
                    rest = &inner[end..];
                }
                words.push(word);
            }
            Token::End => all.extend(plain(std::mem::take(&mut words))),
        }
    }
    all.extend(plain(words));
    all
}

enum Token {
    Word(String),
    /// Of one command.
    End,
}

/// Where the bracket that is open is closed.
fn closing(text: &str) -> usize {
    let mut depth = 1;
    for (at, letter) in text.char_indices() {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn tokens(line: &str) -> Vec<Token> {
    let (mut all, mut word, mut quote, mut depth): (Vec<Token>, Option<String>, Option<char>, i32) =
        (Vec::new(), None, None, 0);
    for letter in line.chars() {
        let plain = quote.is_none() && depth == 0;
        match letter {
            '#' if plain && word.is_none() => break,
            '|' | ';' | '&' | '<' | '>' if plain && !word.as_ref().is_some_and(|word| word.is_empty()) => {
                all.extend(word.take().map(Token::Word));
                all.push(Token::End);
            }
            letter if plain && letter.is_whitespace() => all.extend(word.take().map(Token::Word)),
            '"' | '\'' if depth == 0 && quote.is_none_or(|open| open == letter) => {
                quote = if quote.is_some() { None } else { Some(letter) };
                word.get_or_insert_default();
            }
            letter => {
                let word = word.get_or_insert_default();
                let opens = letter == '(' && (depth > 0 || word.ends_with('$'));
                depth += i32::from(opens) - i32::from(letter == ')' && depth > 0);
                word.push(letter);
            }
        }
    }
    all.extend(word.map(Token::Word));
    all
}

/// Without `sudo`, `exec`, prompts, and what is set for one command.
fn plain(words: Vec<String>) -> Option<Vec<String>> {
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.peek() {
        if word.contains("=(") {
            // A list, of whatever.
            return None;
        }
        let assigns = word
            .split_once('=')
            .is_some_and(|(name, _)| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
        let (left_out, more) = match word.as_str() {
            "sudo" | "exec" | "export" | "$" | "{" | "if" | "then" | "do" | "!" => (true, 0),
            "-u" => (true, 1),
            _ => (assigns, 0),
        };
        if !left_out {
            break;
        }
        words.by_ref().take(1 + more).for_each(drop);
    }
    let words: Vec<String> = words.collect();
    (!words.is_empty()).then_some(words)
}
