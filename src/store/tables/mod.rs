//! Typed rows and their few verbs, a file for each noun; free functions over `&impl Get` and `&mut Write`.
