//! Every error code of a recipe, in one table. A code never changes its meaning.

macro_rules! codes {
    ($($name:ident = $code:literal, $doc:literal;)*) => {
        $(#[doc = $doc] pub const $name: &str = $code;)*
        /// Code and meaning, in order.
        pub const TABLE: &[(&str, &str)] = &[$(($code, $doc)),*];
    };
}

codes! {
    FILE = "R0101", "the recipe file cannot be read";
    SYNTAX = "R0102", "the file is not valid TOML";
    SCHEMA_VERSION = "R0103", "the recipe's schema version is not supported";
    INCLUDE_CYCLE = "R0104", "a file includes itself";
    INCLUDE = "R0105", "an included file cannot be read";
    PROFILE = "R0106", "no profile of this name";
    SETTING = "R0107", "a `-S` setting cannot be applied";
    NOT_FINITE = "R0108", "nan and infinity are not accepted";
    DATE = "R0109", "dates and times are not accepted";
    UNKNOWN_KEY = "R0201", "a key that nothing reads";
    TYPE = "R0202", "a value of the wrong type";
    RANGE = "R0203", "a value out of its range";
    MISSING = "R0204", "something required is missing";
    UNKNOWN_NAME = "R0205", "a name that is not in the list of known ones";
    CONFLICT = "R0206", "settings that do not go together";
    UNSUPPORTED = "R0207", "something this version does not support";
    NAME = "R0208", "a name with characters that names cannot have";
    DUPLICATE = "R0209", "something is declared twice";
    UNUSED_PARAM = "R0210", "a parameter that nothing uses";
    MATRIX = "R0211", "a matrix that does not come to cells";
    UNKNOWN_PARAM = "R0301", "no parameter of this name";
    INTERPOLATION = "R0302", "a malformed interpolation";
    PARAM_CYCLE = "R0303", "a parameter depends on itself";
    REFERENCE = "R0310", "a malformed reference";
    NO_SUCH = "R0311", "a reference to a stage or source that does not exist";
    NO_OUTPUT = "R0312", "a reference to an output that the stage does not have";
    WRONG_ARTIFACT = "R0313", "an input of the wrong kind of artifact";
    UNKNOWN_INPUT = "R0314", "the stage kind has no input of this name";
    MISSING_INPUT = "R0315", "a required input is missing";
    NOT_A_LIST = "R0316", "a list where the input takes one artifact";
    CYCLE = "R0317", "stages depend on each other in a circle";
    CELL = "R0318", "a reference that does not say which cell of a matrix is meant";
    STEP = "R0319", "a reference to a step that the stage does not have";
    SELECTION = "R0320", "the command line names a stage that does not exist";
    USAGE = "R0401", "options that do not go together";
    SOURCE = "R0402", "a source cannot be read";
    LOCK = "R0403", "recipe.lock does not describe the sources";
    WORKER = "R0404", "the worker cannot be used";
    NOT_STORED = "R0405", "the store does not have what was asked for";
    STAGE = "R0406", "a stage failed";
    TIMEOUT = "R0407", "a stage ran past its timeout";
    ASSERTION = "R0408", "an assertion does not hold";
    COST = "R0409", "a run would cost more than is allowed";
    INFRA = "R0501", "the machine, the network or the disk failed; worth a retry";
    INTEGRITY = "R0502", "what was read is not what its digest says";
    INTERNAL = "R0901", "an error in recipe itself";
}
