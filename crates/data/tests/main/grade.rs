//! The math grader, as a table.

use data::grade::{canonical, exact_match, final_answer, math};

/// (completion, reference, equal)
const TABLE: &[(&str, &str, bool)] = &[
    // integers and decimals
    ("46", "46", true),
    (" 46\n", "46", true),
    ("46.", "46", true),
    ("46.0", "46", true),
    ("46.50", "46.5", true),
    (".5", "0.5", true),
    ("0.50", "1/2", true),
    ("47", "46", false),
    ("4.6", "46", false),
    ("046", "46", true),
    ("+7", "7", true),
    ("-7", "7", false),
    ("-7", "-7", true),
    ("−7", "-7", true),
    ("- 7", "-7", true),
    ("0", "-0", true),
    ("100000000000000000001", "100000000000000000001", true),
    ("100000000000000000001", "100000000000000000002", false),
    ("0.1", "0.10000000000000001", false),
    // thousands
    ("1,234", "1234", true),
    ("1,234,567.89", "1234567.89", true),
    ("1{,}234", "1234", true),
    ("12,34", "1234", false),
    ("1.234", "1234", false),
    // money, percent, units
    ("$5", "5", true),
    ("-$5", "-5", true),
    ("$-5", "-5", true),
    ("\\$1,000.00", "1000", true),
    ("€3.50", "3.5", true),
    ("5 dollars", "$5", true),
    ("50%", "50", true),
    ("50\\%", "50%", true),
    ("50 percent", "50%", true),
    ("12 cm", "12", true),
    ("12cm", "12", true),
    ("12 cm^2", "12", true),
    ("12\\text{ m/s}", "12", true),
    ("12\\,\\mathrm{kg}", "12 kg", true),
    ("90^\\circ", "90", true),
    ("90°", "90", true),
    ("3 hours", "3", true),
    ("5 m", "5", true),
    ("3 million", "3000000", true),
    ("2.5 thousand", "2,500", true),
    ("2 dozen eggs", "24", true),
    ("2x", "2", false),
    ("2 pi", "2", false),
    ("2\\pi", "2", false),
    ("5\\sqrt{2}", "5", false),
    // fractions
    ("3/4", "0.75", true),
    ("6/8", "3/4", true),
    ("\\frac{3}{4}", "3/4", true),
    ("\\dfrac{3}{4}", "0.75", true),
    ("\\tfrac{6}{8}", "\\frac34", true),
    ("-\\frac{1}{2}", "-0.5", true),
    ("\\frac{-1}{2}", "-1/2", true),
    ("\\frac{1}{3}", "0.333", false),
    ("1 1/2", "1.5", true),
    ("1\\frac{1}{2}", "3/2", true),
    ("1/0", "1", false),
    ("1/0", "1/0", true),
    ("3 / 4", "0.75", true),
    // powers of ten
    ("1.2e3", "1200", true),
    ("1.2 \\times 10^3", "1200", true),
    ("1.2 × 10^{3}", "1200", true),
    ("10^3", "1000", true),
    ("5 \\cdot 10^{-2}", "0.05", true),
    // wrappers
    ("\\boxed{46}", "46", true),
    ("so \\boxed{\\frac{3}{4}}.", "0.75", true),
    ("\\boxed{ 1{,}234 }", "1234", true),
    ("\\boxed{4} no, \\boxed{5}", "5", true),
    ("\\boxed{4} no, \\boxed{5}", "4", false),
    ("$46$", "46", true),
    ("$$46$$", "46", true),
    ("\\(46\\)", "46", true),
    ("**46**", "46", true),
    ("x = 5", "5", true),
    ("x=5", "5", true),
    ("\\boxed{x = 5}", "5", true),
    ("{5}", "5", true),
    // worked solutions
    ("6*7=42\n#### 42", "42", true),
    ("6*7=42\n#### 42", "The total is 42.\n#### 42", true),
    ("#### 5\n#### 6", "6", true),
    ("#### $1,200", "1200", true),
    ("#### 5 apples", "5", true),
    ("#### 42", "#### 43", false),
    ("The answer is 5.", "5", true),
    ("The answer is: $5", "5", true),
    ("the answer is 5 apples, since 2 + 3 = 5", "5", true),
    ("Answer: 5", "5", true),
    ("The final answer is $\\frac{1}{2}$.", "0.5", true),
    ("Final answer is 3 + 4 = 7", "7", true),
    ("She has 3 apples and buys 4, so she has 7.", "7", true),
    ("She has 3 apples and buys 4, so she has 7.", "4", false),
    ("it costs $1,250.50 in all", "1250.5", true),
    ("between 10-12", "12", true),
    ("the temperature is -5 degrees", "-5", true),
    ("I do not know", "5", false),
    ("", "5", false),
    ("####", "5", false),
    ("\\boxed{", "5", false),
    // text
    ("Paris", "paris", true),
    ("\\boxed{\\text{Paris}}", "Paris", true),
    ("London", "Paris", false),
    ("(A)", "A", true),
    ("B", "(A)", false),
    ("\\boxed{(3, 4)}", "(3,4)", true),
    ("(3, 4)", "(4, 3)", false),
    ("x+1", "x + 1", true),
    ("x+1", "1", false),
    ("\\boxed{2\\pi}", "2 \\pi", true),
    ("\\boxed{x^2+1}", "x^2 + 1", true),
    ("3:30", "3:30", true),
    ("3:30", "3", false),
    ("", "", false),
];

#[test]
fn the_table() {
    let wrong: Vec<String> = (TABLE.iter())
        .filter(|(given, wanted, equal)| math(given, wanted) != *equal)
        .map(|(given, wanted, equal)| {
            format!(
                "{given:?} and {wanted:?} should be {}: {:?}, canonical {:?}",
                if *equal { "equal" } else { "unequal" },
                final_answer(given),
                canonical(given),
            )
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(TABLE.len() > 100);
}

#[test]
fn equal_answers_have_one_canonical_form() {
    for same in [
        ["0.5", "\\boxed{\\frac{1}{2}}", "The answer is 1/2."],
        ["$1,000", "1000", "so it is 1000.00"],
    ] {
        let forms: Vec<_> = same.iter().map(|text| canonical(text)).collect();
        assert!(
            forms[0].is_some() && forms.iter().all(|f| *f == forms[0]),
            "{forms:?}"
        );
    }
    assert_eq!(canonical(""), None);
    assert_ne!(canonical("1"), canonical("2"));
}

#[test]
fn nothing_ends_the_process() {
    let pieces = [
        "\\boxed{",
        "}",
        "####",
        "1/0",
        "\\frac",
        "{",
        "9".repeat(60).as_str(),
        "e999",
        "10^99",
        "🙂",
        "-",
        "$",
        ",",
        "é",
        "\n",
    ]
    .map(String::from);
    for seed in 0..3000 {
        let mut draw = data::rng::Draw::new(seed, "test", 0, 0);
        let n = draw.below(6);
        let text: String = (0..n)
            .map(|_| pieces[draw.below(pieces.len() as u64) as usize].as_str())
            .collect();
        math(&text, "5");
        math("5", &text);
        canonical(&text);
    }
}

#[test]
fn every_gsm8k_style_solution_grades_itself() {
    for answer in ["18", "3", "70000", "2,125", "-12", "0.5", "1,000,000"] {
        let solution = format!("She sells 9 * 2 = $<<9*2=18>>18 a day.\n#### {answer}");
        assert!(math(&solution, &solution));
        assert!(math(&format!("so \\boxed{{{answer}}}"), &solution));
        assert!(!math("#### 99", &solution));
    }
}

#[test]
fn exact_matches_set_outer_space_aside() {
    assert!(exact_match(" a b\n", "a b", false));
    assert!(!exact_match("A b", "a b", false) && exact_match("A b", "a b", true));
    assert!(!exact_match("a  b", "a b", true));
}
