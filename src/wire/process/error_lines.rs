//! Finds the lines of stderr output that say why a program ended. Pure.
//!
//! Runtimes and package managers print the message in the middle: after it come stack frames, dumps of objects and
//! advice. These lines are left out.

use crate::text;

/// The most lines of a message.
const MAX_LINES: usize = 3;
/// The most characters of a line.
const MAX_LINE_CHARS: usize = 200;
/// The prefixes of the lines of npm's errors.
const NPM_PREFIXES: [&str; 2] = ["npm error", "npm ERR!"];
/// The beginnings of details that npm prints beside the error itself, after the prefix.
const NPM_DETAILS: [&str; 12] = [
    "code ",
    "syscall ",
    "path ",
    "errno ",
    "cwd ",
    "dest ",
    "signal ",
    "A complete log of this run",
    "404 Note that you can also install",
    "404 tarball, folder",
    "404 It was specified in",
    "enoent This is related to npm",
];
/// The beginnings of lines that say nothing about the error.
const NOISE_PREFIXES: [&str; 20] = [
    "at ",
    "File \"",
    "Node.js v",
    "Bun v",
    "(Use `node",
    "throw ",
    "note: run with `RUST_BACKTRACE",
    "note: Some details are omitted",
    "stack backtrace:",
    "Stack trace:",
    "Traceback (most recent call last)",
    "Exception Group Traceback (most",
    "The above exception was the direct cause",
    "During handling of the above exception",
    "--- End of inner exception",
    "exit status ",
    "Run 'docker ",
    "See 'docker ",
    "... ",
    "\u{2026} ",
];

/// Returns the lines that say why the program ended: those of the last error, or the last lines if none looks like one.
/// At most three, each at most 200 characters long.
pub(super) fn error_lines(stderr: &str) -> Vec<String> {
    let mut lines = meaningful_lines(stderr);
    let Some(last_error) = lines.iter().rposition(|line| starts_error(line)) else {
        return lines.split_off(lines.len().saturating_sub(MAX_LINES));
    };
    // What comes after an error that the program survived is more important.
    if lines.len() - last_error > MAX_LINES + 1 {
        return lines.split_off(lines.len() - MAX_LINES);
    }
    let is_npm = |line: &String| NPM_PREFIXES.iter().any(|prefix| line.starts_with(prefix));
    let (earlier, _) = lines.split_at(last_error);
    let first_error = if lines.get(last_error).is_some_and(is_npm) {
        earlier.iter().rposition(|line| !is_npm(line)).map_or(0, |before| before + 1)
    } else {
        // An error and its cause.
        let causes = earlier.iter().rev().take_while(|line| starts_error(line) && !is_npm(line)).count();
        last_error - causes.min(MAX_LINES - 1)
    };
    lines.drain(..first_error);
    lines.truncate(MAX_LINES);
    lines
}

/// Returns the printable lines without stack frames and the like.
fn meaningful_lines(stderr: &str) -> Vec<String> {
    let mut lines = Vec::new();
    // True between the braces of an object that Node prints after a stack, and after the frame of a Python traceback.
    let (mut in_object, mut after_frame) = (false, false);
    for raw in stderr.lines() {
        let raw = without_escape_sequences(raw);
        // Python draws a tree of exceptions.
        let line = raw.trim_start_matches([' ', '\t', '|', '+', '-']).trim_end();
        if line.starts_with("goroutine ") && line.ends_with("]:") {
            // The rest is a dump of all goroutines.
            break;
        }
        let is_indented = raw.starts_with([' ', '\t']);
        in_object &= is_indented;
        let is_code =
            (in_object && !line.contains("Error: ")) || (after_frame && is_indented && !starts_error(line));
        if !is_code && !is_noise(line) {
            lines.push(text::sanitize(line, MAX_LINE_CHARS));
        }
        in_object |= line.starts_with("at ") && line.ends_with('{');
        after_frame = line.starts_with("File \"");
    }
    lines
}

fn is_noise(line: &str) -> bool {
    // A prefix alone, or with a code such as `404` or `enoent`.
    let npm = NPM_PREFIXES.iter().find_map(|prefix| line.strip_prefix(prefix)).map(str::trim_start);
    let is_detail =
        |text: &str| !text.contains(' ') || NPM_DETAILS.iter().any(|detail| text.starts_with(detail));
    let numbered = line.trim_start_matches('#').trim_start_matches(|char: char| char.is_ascii_digit());
    let is_numbered_frame =
        numbered.len() < line.len() && (numbered.starts_with(": ") || line.starts_with('#'));
    npm.is_some_and(is_detail)
        || is_numbered_frame
        || !line.contains(char::is_alphabetic)
        || NOISE_PREFIXES.iter().any(|prefix| line.starts_with(prefix))
}

/// True for the first line of an error message.
fn starts_error(line: &str) -> bool {
    const PREFIXES: [&str; 12] = [
        "npm error",
        "npm ERR!",
        "Exception in thread",
        "Caused by:",
        "Unhandled exception",
        "Uncaught ",
        "panic:",
        "fatal",
        "error:",
        "docker:",
        "\u{d7} ",
        "PHP Fatal error:",
    ];
    const WORDS: [&str; 6] =
        [": error:", "panicked at", "command not found", " ERROR ", " FATAL ", " CRITICAL "];
    PREFIXES.iter().any(|prefix| line.starts_with(prefix))
        || WORDS.iter().any(|word| line.contains(word))
        || names_exception(line)
}

/// True for a line such as `ValueError: why`, `java.io.IOException: why` and `Error [ERR_CODE]: why`.
fn names_exception(line: &str) -> bool {
    let line = line.strip_prefix("[cause]: ").unwrap_or(line);
    let (name, rest) = line.split_at(line.find([':', ' ']).unwrap_or(line.len()));
    let is_name = |char: char| char.is_alphanumeric() || matches!(char, '.' | '_' | '$');
    let is_exception =
        ["Error", "Exception", "ExceptionGroup", "ERROR", "FATAL"].iter().any(|end| name.ends_with(end));
    let has_message =
        rest.is_empty() || rest.starts_with(':') || (rest.starts_with(" [") && rest.contains("]:"));
    is_exception && has_message && name.chars().all(is_name)
}

/// Removes the escape sequences that set colours.
fn without_escape_sequences(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let parameters = part.find(|char: char| ('@'..='~').contains(&char));
        clean.extend(parameters.and_then(|end| part.get(end + 1..)));
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Outputs of real programs, shortened.
    const OUTPUTS: &[(&str, &str, &[&str])] = &[
        (
            "Node: a module is missing",
            "node:internal/modules/cjs/loader:1210\n  throw err;\n  ^\n\nError: Cannot find module 'nope'\nRequire stack:\n\
             - /srv/a.js\n    at Module._resolveFilename (node:internal/modules/cjs/loader:1207:15)\n    \
             at Module._load (node:internal/modules/cjs/loader:1038:27) {\n  code: 'MODULE_NOT_FOUND',\n  \
             requireStack: [ '/srv/a.js' ]\n}\n\nNode.js v20.20.2\n",
            &["Error: Cannot find module 'nope'", "Require stack:", "/srv/a.js"],
        ),
        (
            "Node: a package is missing",
            "node:internal/modules/esm/resolve:873\n  throw new ERR_MODULE_NOT_FOUND(packageName, fileURLToPath(base), null);\n\
             \u{20}       ^\n\nError [ERR_MODULE_NOT_FOUND]: Cannot find package 'nope' imported from /srv/a.mjs\n    \
             at packageResolve (node:internal/modules/esm/resolve:873:9) {\n  code: 'ERR_MODULE_NOT_FOUND'\n}\n\n\
             Node.js v20.20.2\n",
            &["Error [ERR_MODULE_NOT_FOUND]: Cannot find package 'nope' imported from /srv/a.mjs"],
        ),
        (
            "Node: an error with a cause",
            "[eval]:1\nthrow new Error(\"outer\",{cause:e})\n^\n\nError: outer\n    at [eval]:1:38\n    \
             ... 4 lines matching cause stack trace ...\n    at node:internal/main/eval_string:51:3 {\n  \
             [cause]: TypeError: Cannot read properties of null (reading 'x')\n      at [eval]:1:21\n}\n\nNode.js v20.20.2\n",
            &["Error: outer", "[cause]: TypeError: Cannot read properties of null (reading 'x')"],
        ),
        (
            "Node: a file is missing",
            "node:fs:573\n  return binding.open(\n                 ^\n\nError: ENOENT: no such file or directory, open '/nope'\n    \
             at Object.openSync (node:fs:573:18)\n    at node:internal/main/eval_string:51:3 {\n  errno: -2,\n  \
             code: 'ENOENT',\n  syscall: 'open',\n  path: '/nope'\n}\n\nNode.js v20.20.2\n",
            &["Error: ENOENT: no such file or directory, open '/nope'"],
        ),
        (
            "Node: syntax",
            "/srv/d.js:1\nconst x = ;\n          ^\n\nSyntaxError: Unexpected token ';'\n    at wrapSafe \
             (node:internal/modules/cjs/loader:1464:18)\n\nNode.js v20.20.2\n",
            &["SyntaxError: Unexpected token ';'"],
        ),
        (
            "npm: no such package",
            "npm error code E404\nnpm error 404 Not Found - GET https://registry.example/@x%2fnope\nnpm error 404\n\
             npm error 404  The requested resource '@x/nope@*' could not be found or you do not have permission to access it.\n\
             npm error 404\nnpm error 404 Note that you can also install from a\nnpm error 404 tarball, folder, http url, or \
             git url.\nnpm error A complete log of this run can be found in: /srv/.npm/_logs/1-debug-0.log\n",
            &[
                "npm error 404 Not Found - GET https://registry.example/@x%2fnope",
                "npm error 404  The requested resource '@x/nope@*' could not be found or you do not have permission to \
                 access it.",
            ],
        ),
        (
            "npm: no package.json",
            "npm error code ENOENT\nnpm error syscall open\nnpm error path /srv/package.json\nnpm error errno -2\n\
             npm error enoent Could not read package.json: Error: ENOENT: no such file or directory, open \
             '/srv/package.json'\nnpm error enoent This is related to npm not being able to find a file.\nnpm error enoent\n\
             npm error A complete log of this run can be found in: /srv/.npm/_logs/2-debug-0.log\n",
            &[
                "npm error enoent Could not read package.json: Error: ENOENT: no such file or directory, open \
               '/srv/package.json'",
            ],
        ),
        (
            "npm 9: a conflict of versions",
            "npm WARN config old\nnpm ERR! code ERESOLVE\nnpm ERR! ERESOLVE could not resolve\nnpm ERR!\n\
             npm ERR! While resolving: a@1.0.0\nnpm ERR! Found: b@2.0.0\nnpm ERR! Fix the upstream dependency conflict\n\
             npm ERR! A complete log of this run can be found in:\nnpm ERR!     /srv/.npm/_logs/3.log\n",
            &[
                "npm ERR! ERESOLVE could not resolve",
                "npm ERR! While resolving: a@1.0.0",
                "npm ERR! Found: b@2.0.0",
            ],
        ),
        (
            "Python: a module is missing",
            "Traceback (most recent call last):\n  File \"/srv/a.py\", line 1, in <module>\n    import nope\n    ^^^^^^^^^^^\n\
             ModuleNotFoundError: No module named 'nope'\n",
            &["ModuleNotFoundError: No module named 'nope'"],
        ),
        (
            "Python: a chain, and a message of two lines",
            "Traceback (most recent call last):\n  File \"<string>\", line 3, in <module>\nKeyError: 'KEY'\n\n\
             The above exception was the direct cause of the following exception:\n\nTraceback (most recent call last):\n  \
             File \"<string>\", line 5, in <module>\nRuntimeError: set KEY\nin the environment\n",
            &["KeyError: 'KEY'", "RuntimeError: set KEY", "in the environment"],
        ),
        (
            "Python: a group of exceptions",
            "  + Exception Group Traceback (most recent call last):\n  |   File \"<string>\", line 5, in <module>\n  |   File \
             \"/lib/asyncio/runners.py\", line 190, in run\n  |     return runner.run(main)\n  |            ^^^^^^^^^^^^^^^^\n  \
             | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)\n  +-+---------------- 1 ----------------\n    \
             | Traceback (most recent call last):\n    |   File \"<string>\", line 2, in f\n    | ValueError: in group\n    \
             +------------------------------------\n",
            &["ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)", "ValueError: in group"],
        ),
        (
            "Python: syntax",
            "  File \"/srv/s.py\", line 1\n    def f(:\n          ^\nSyntaxError: invalid syntax\n",
            &["SyntaxError: invalid syntax"],
        ),
        (
            "Python: arguments",
            "usage: srv [-h] --x X\nsrv: error: the following arguments are required: --x\n",
            &["srv: error: the following arguments are required: --x"],
        ),
        (
            "Python: no such module to run",
            "/usr/bin/python3: No module named nope_module\n",
            &["/usr/bin/python3: No module named nope_module"],
        ),
        (
            "Go: a panic",
            "panic: assignment to entry in nil map\n\ngoroutine 1 [running]:\nmain.main()\n\t/srv/main.go:2 +0x28\n\
             exit status 2\n",
            &["panic: assignment to entry in nil map"],
        ),
        (
            "Rust: a panic",
            "\nthread 'main' (4711) panicked at src/main.rs:2:5:\nno TOKEN\nstack backtrace:\n   0: __rustc::rust_begin_unwind\n\
             \u{20}            at /rustc/1/library/std/src/panicking.rs:697:5\nnote: run with `RUST_BACKTRACE=1` environment \
             variable to display a backtrace\n",
            &["thread 'main' (4711) panicked at src/main.rs:2:5:", "no TOKEN"],
        ),
        (
            "Java: an exception with a cause",
            "Exception in thread \"main\" java.lang.IllegalStateException: cannot start\n\tat T.main(T.java:1)\nCaused by: \
             java.lang.NullPointerException: it is null\n\tat T.main(T.java:1)\n\t... 3 more\n",
            &[
                "Exception in thread \"main\" java.lang.IllegalStateException: cannot start",
                "Caused by: java.lang.NullPointerException: it is null",
            ],
        ),
        (
            ".NET",
            "Unhandled exception. System.InvalidOperationException: no TOKEN\n   at Program.<Main>$(String[] args) in \
             /srv/Program.cs:line 1\n",
            &["Unhandled exception. System.InvalidOperationException: no TOKEN"],
        ),
        ("sh", "started\nsh: 1: nope-cmd: not found\n", &["started", "sh: 1: nope-cmd: not found"]),
        (
            "bash",
            "started\nbash: line 1: nope-cmd: command not found\n",
            &["bash: line 1: nope-cmd: command not found"],
        ),
        (
            "docker",
            "docker: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?\n\n\
             Run 'docker run --help' for more information\n",
            &[
                "docker: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            ],
        ),
        (
            "uvx",
            "Resolved nothing\n  \u{d7} No solution found when resolving tool dependencies:\n  \u{2570}\u{2500}\u{25b6} \
             Because nope was not found in the package registry and you\n      require nope, your requirements are \
             unsatisfiable.\n",
            &[
                "\u{d7} No solution found when resolving tool dependencies:",
                "\u{2570}\u{2500}\u{25b6} Because nope was not found in the package registry and you",
                "require nope, your requirements are unsatisfiable.",
            ],
        ),
        ("colours", "\u{1b}[1m\u{1b}[31merror\u{1b}[39m: no TOKEN\u{1b}[0m\n", &["error: no TOKEN"]),
        ("an error that the program survived", "Error: cache is cold\na\nb\nc\nd\n", &["b", "c", "d"]),
        ("no error", "one\n\ntwo\nPassword: ", &["one", "two", "Password:"]),
        ("nothing", "\n^\n", &[]),
    ];

    #[test]
    fn message_of_real_programs_is_found() {
        for (program, output, expected) in OUTPUTS {
            assert_eq!(error_lines(output), *expected, "{program}");
        }
    }

    #[test]
    fn lines_are_bounded() {
        let lines = error_lines(&format!("ValueError: {}", "x".repeat(1_000)));
        assert_eq!(lines.iter().map(|line| line.chars().count()).collect::<Vec<_>>(), [MAX_LINE_CHARS]);
    }
}
