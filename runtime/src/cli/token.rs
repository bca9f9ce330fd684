//! `token`: who may ask the admin API.

use anyhow::bail;
use clap::{Args, Subcommand};
use tokio_util::task::TaskTracker;

use super::ConfigFile;
use super::render::moment;
use crate::admin::token::NewToken;
use crate::config::{Config, Environment};
use crate::store::{Changed, RegistryChange, Store};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a token and print it: it is shown this once
    New(NewArguments),
    /// Show the ids of all tokens, and whose they are
    List(ConfigFile),
    /// Make a token worthless
    Revoke(RevokeArguments),
}

#[derive(Args)]
#[group(required = true, multiple = false, args = ["tenant", "operator"])]
pub(super) struct NewArguments {
    /// For this tenant, which sees and changes what is its own
    #[arg(long)]
    tenant: Option<String>,
    /// For the operator, who sees and changes everything
    #[arg(long)]
    operator: bool,
    #[command(flatten)]
    config_file: ConfigFile,
}

#[derive(Args)]
pub(super) struct RevokeArguments {
    /// The token's id: what stands between the underscores of it
    id: String,
    #[command(flatten)]
    config_file: ConfigFile,
}

pub(super) async fn run(command: Command, environment: &Environment) -> anyhow::Result<()> {
    let (Command::New(NewArguments { config_file, .. })
    | Command::List(config_file)
    | Command::Revoke(RevokeArguments { config_file, .. })) = &command;
    let config = config_file.read(environment)?;
    let writer = TaskTracker::new();
    let store = Store::open(&config.store, &writer).await?;
    let done = match command {
        Command::New(arguments) => new(&config, &store, arguments.tenant).await,
        Command::List(_) => list(&store).await,
        Command::Revoke(arguments) => revoke(&store, arguments.id).await,
    };
    drop(store);
    writer.close();
    writer.wait().await;
    done
}

async fn new(config: &Config, store: &Store, tenant: Option<String>) -> anyhow::Result<()> {
    if let Some(tenant) = &tenant
        && config.tenants.iter().all(|known| known.name != *tenant)
    {
        let known: Vec<_> = config.tenants.iter().map(|known| known.name.as_str()).collect();
        bail!("--tenant: expected one of {}, found {tenant:?}", known.join(", "));
    }
    let NewToken { text, kept } = NewToken::make(tenant);
    store.change(RegistryChange::AddToken(kept)).await?;
    say!("{text}");
    Ok(())
}

async fn list(store: &Store) -> anyhow::Result<()> {
    for token in store.tokens(None).await? {
        let whose = token.tenant.map_or_else(|| "operator".to_owned(), |tenant| format!("tenant {tenant}"));
        say!("{}  {whose}, since {}", token.id, moment(token.created_ms));
    }
    Ok(())
}

async fn revoke(store: &Store, id: String) -> anyhow::Result<()> {
    match store.change(RegistryChange::RevokeToken { id: id.clone() }).await? {
        Changed::No => bail!("expected the id of a token, found {id:?}: see `pulse-notifier token list`"),
        Changed::Yes | Changed::To(_) | Changed::Live { .. } => {
            say!("{id}  revoked");
            Ok(())
        }
    }
}
