//! `stagger completions` and `stagger man`.

use crate::error::{Error, Result};

/// The completion script for `shell`.
pub(super) fn completions(shell: clap_complete::Shell, cli: &mut clap::Command) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, cli, "stagger", &mut text);
    text
}

/// The manual: the page of the program, followed by the pages of its commands.
pub(super) fn manual(mut cli: clap::Command) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let failed = |e: std::io::Error| Error::failed(format!("the manual cannot be made: {e}"));
    cli.build();
    clap_mangen::Man::new(cli.clone()).render(&mut text).map_err(failed)?;
    for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
        let title = format!("stagger-{}", command.get_name());
        clap_mangen::Man::new(command.clone()).title(title).render(&mut text).map_err(failed)?;
    }
    Ok(text)
}
