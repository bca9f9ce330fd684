//! What is let in, and what it takes to find out: compiling in a process of its own, and code that is kept.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use end_to_end::stamped::{LIVE, REFUSED, Running, file, lines, put, said, stamp, version, world};
use end_to_end::{binary, bombs, guest, wait};
use pulse_notifier::config::{Config, Environment};
use pulse_notifier::effect::Hash;
use pulse_notifier::grant::Grant;
use pulse_notifier::metrics::Metrics;
use pulse_notifier::registry::{Compiler, Registry, Terms, Watch};
use pulse_notifier::sandbox::{ComponentLimits, Sandbox};
use pulse_notifier::store::{Deployment, Source, Store};
use pulse_notifier::tenant::Tenant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

fn terms(component: ComponentLimits) -> Terms {
    Terms { grant: Grant::towards(&[]).into(), component }
}

fn compiler() -> Result<Compiler> {
    Ok(Compiler::new(&Sandbox::start()?).with_program(binary()?))
}

/// Why a component is not let in.
fn refusal(wasm: &[u8], limits: ComponentLimits) -> Result<String> {
    let refused = compiler()?.admit("bomb", wasm, &terms(limits)).err();
    Ok(refused.context("it is refused")?.to_string())
}

#[test]
fn more_than_a_component_may_have_is_refused_before_it_is_compiled() -> Result<()> {
    let usual = ComponentLimits::default();
    let cases = [
        (bombs::functions(100_000, &[]), "100000 functions, more than the 50000 it may have (functions in its limits)"),
        (
            bombs::functions(1, &[0x01].repeat(5 << 20)),
            "5242882 bytes in one of its functions, more than the 524288 it may have (function_bytes in its limits)",
        ),
        (vec![0; 11 << 20], "11534336 bytes, more than the 10485760 it may have (component_bytes in its limits)"),
        (b"\x7fELF of compiled code".to_vec(), "expected a WebAssembly component"),
        (b"(component)".to_vec(), "expected a WebAssembly component"),
        (b"\0asm\x01\0\0\0".to_vec(), "a core module"),
    ];
    for (wasm, why) in cases {
        let refused = refusal(&wasm, usual)?;
        assert!(refused.starts_with(why), "{refused}");
    }
    Ok(())
}

#[test]
fn a_component_that_keeps_its_compiler_busy_ends_with_it() -> Result<()> {
    let bomb = bombs::functions(100, &bombs::slow_body(100 << 10));
    let second = ComponentLimits { compile_cpu: Duration::from_secs(1), ..ComponentLimits::default() };
    let why = "compiling it took more than 1 s of processor time: it is refused (compile_seconds in its limits)";
    assert_eq!(refusal(&bomb, second)?, why);
    Ok(())
}

#[test]
fn a_component_that_eats_its_compilers_memory_ends_with_it() -> Result<()> {
    let bomb = bombs::functions(100, &bombs::slow_body(100 << 10));
    let little = ComponentLimits { compile_bytes_max: 160 << 20, ..ComponentLimits::default() };
    let why =
        "compiling it took more than 167772160 bytes of memory: it is refused (compile_memory_bytes in its limits)";
    assert_eq!(refusal(&bomb, little)?, why);
    Ok(())
}

#[test]
fn types_inside_types_without_end_harm_nobody() -> Result<()> {
    for (depth, why) in [(1_000, "it does not fit"), (100_000, "it does not"), (3_000_000, "it does not compile")] {
        let refused = refusal(&bombs::nested_types(depth), ComponentLimits::default())?;
        assert!(refused.starts_with(why), "{refused}");
    }
    Ok(())
}

#[test]
fn a_compiling_process_that_somebody_kills_says_nothing_about_the_component() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (program, killed) = (folder.path().join("program"), folder.path().join("killed"));
    let (first, service) = (killed.display(), binary()?);
    let script = format!("#!/bin/sh\n[ -e {first} ] && exec {} \"$@\"\n: > {first}\nkill -9 $$\n", service.display());
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700))?;
    let compiler = Compiler::new(&Sandbox::start()?).with_program(&program);
    let (wasm, terms) = (fs::read(guest("smtp")?)?, terms(ComponentLimits::default()));
    let why = compiler.admit("smtp", &wasm, &terms).err().context("it is killed")?;
    assert!(why.is_passing(), "{why}");
    compiler.admit("smtp", &wasm, &terms)?;
    Ok(())
}

#[test]
fn a_few_bytes_of_data_far_apart_take_little_room_when_they_are_compiled() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let compiler = compiler()?.with_cache(folder.path().join("cache").as_path());
    let refused = compiler.admit("sparse", &bombs::sparse_memories(4), &terms(ComponentLimits::default())).err();
    assert!(refused.context("it is no plugin")?.to_string().contains("notify"));
    let code = kept(&folder.path().join("cache"))?.pop().context("it is kept")?;
    assert!(fs::metadata(&code)?.len() < 1 << 20, "{}", fs::metadata(&code)?.len());
    Ok(())
}

/// A tenant whose plugin `stamped` may mail these people.
fn tenants(folder: &Path, recipients: &str) -> Result<Vec<Tenant>> {
    let file = folder.join("pn.toml");
    let text = format!(
        "[broker]\nlogin = \"me\"\npassword = \"secret\"\n[tenants.red.queue]\nname = \"red\"\n\
         [tenants.red.accounts.mail]\nkind = \"smtp\"\nhost = \"localhost\"\nfrom = \"a@example.com\"\n\
         security = \"none\"\n\
         [tenants.red.plugins.stamped.grant.email]\naccount = \"mail\"\nrecipients = [\"{recipients}\"]\n"
    );
    fs::write(&file, text)?;
    Ok(Config::from_file(&file, &Environment::default())?.tenants)
}

#[tokio::test]
async fn what_goes_live_while_new_terms_are_looked_at_stays_live_under_them() -> Result<()> {
    let (folder, writer, stop) = (tempfile::tempdir()?, TaskTracker::new(), CancellationToken::new());
    let store = Store::open(&format!("sqlite:{}/s.db", folder.path().display()), &writer).await?;
    fs::write(folder.path().join("stamped.wasm"), version(0)?)?;
    let before = tenants(folder.path(), "*@example.com")?;
    let loaded = Registry::load(compiler()?, folder.path(), &before, Some(store.clone())).await;
    let registry = loaded.map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    writer.spawn(Watch::new(Arc::clone(&registry), Arc::new(Metrics::new()?)).run(stop.clone()));
    let deploy = async |number: u32| {
        let wasm = Arc::new(version(number)?);
        let (tenant, plugin, digest) = ("red".to_owned(), "stamped".to_owned(), Hash::of_bytes(&wasm));
        let (source, is_own) = (Source::Api, true);
        store.deploy(Deployment { tenant, plugin, digest, wasm, source, is_own, file: None }).await?;
        registry.wake();
        anyhow::Ok(digest)
    };
    let live = async |digest: Hash| {
        let is_live = async || Ok(registry.all().iter().all(|(_, version)| version.digest == digest));
        wait::until(&format!("{digest} is live"), Duration::from_secs(30), is_live).await
    };
    let soon = Duration::from_secs(30);
    wait::until("the file is on record", soon, async || Ok(!store.deployments(0).await?.is_empty())).await?;
    live(deploy(1).await?).await?;
    let after = tenants(folder.path(), "a@example.com")?;
    let admitted = registry.admit(&after).await.map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let second = deploy(2).await?;
    live(second).await?;
    registry.go_live(admitted);
    live(second).await?;
    stop.cancel();
    Ok(())
}

/// The files of compiled code in a cache.
fn kept(cache: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(cache)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "code")).collect())
}

#[test]
fn what_was_compiled_once_is_not_compiled_again_and_code_that_somebody_touched_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cache = folder.path().join("cache");
    let wasm = fs::read(guest("smtp")?)?;
    let sandbox = Sandbox::start()?;
    // A program that compiles nothing: what it is admitted from is the cache.
    let admit = |program: &Path| {
        let compiler = Compiler::new(&sandbox).with_program(program).with_cache(&cache);
        compiler.admit("smtp", &wasm, &terms(ComponentLimits::default()))
    };
    let (able, unable) = (binary()?, Path::new("/bin/false"));
    assert!(admit(unable).is_err());
    assert!(admit(&able)?.imports.contains(&"email".to_owned()));
    assert!(admit(unable).is_ok());
    let code = kept(&cache)?.pop().context("it is kept")?;
    assert_eq!(fs::metadata(&code)?.permissions().mode() & 0o777, 0o600);
    let good = fs::read(&code)?;
    let mut touched = good.clone();
    touched[5_000] ^= 1;
    let mut unsealed = good.clone();
    unsealed.truncate(good.len() - 32);
    for bad in [&touched, &unsealed, &good[..good.len() / 2].to_vec(), &Vec::new(), &wasm] {
        fs::write(&code, bad)?;
        assert!(admit(unable).is_err(), "code that is not ours is not loaded");
        assert!(admit(&able).is_ok(), "and harms nobody");
        assert!(admit(unable).is_ok(), "it was replaced");
    }
    // Under the name of another, by a link, or sealed with another key.
    fs::rename(&code, code.with_file_name("elsewhere"))?;
    symlink("elsewhere", &code)?;
    assert!(admit(unable).is_err());
    fs::remove_file(&code)?;
    assert!(admit(&able).is_ok());
    let other = fs::read(guest("irc")?)?;
    let compiler = Compiler::new(&sandbox).with_program(&able).with_cache(&cache);
    assert!(compiler.admit("irc", &other, &terms(ComponentLimits::default())).is_ok());
    let foreign = kept(&cache)?.into_iter().find(|path| *path != code).context("both are kept")?;
    fs::copy(&foreign, &code)?;
    assert!(admit(unable).is_err());
    assert!(admit(&able).is_ok());
    fs::write(cache.join("key"), [7; 32])?;
    assert!(admit(unable).is_err());
    Ok(())
}

#[test]
fn a_cache_that_others_can_write_to_is_not_used() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let wasm = fs::read(guest("smtp")?)?;
    let (open, linked, file) = (folder.path().join("open"), folder.path().join("link"), folder.path().join("file"));
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o770))?;
    symlink(&open, &linked)?;
    fs::write(&file, "")?;
    for cache in [&open, &linked, &file] {
        let compiler = compiler()?.with_cache(cache);
        assert!(compiler.admit("smtp", &wasm, &terms(ComponentLimits::default())).is_ok());
    }
    assert!(fs::read_dir(&open)?.next().is_none());
    Ok(())
}

/// The memory a process holds, in bytes.
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("it says what it holds")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

#[tokio::test]
async fn bombs_change_nothing_in_a_service_that_runs_and_cost_it_no_memory() -> Result<()> {
    let world = world().await?;
    let running = Running::new(&world).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(0));
    let before = resident(running.service.pid().context("it runs")?)?;
    let truncated = version(1)?;
    let cases = [
        (bombs::functions(100_000, &[]), "100000 functions"),
        (bombs::functions(1, &[0x01].repeat(5 << 20)), "5242882 bytes in one of its functions"),
        (bombs::nested_types(3_000_000), "it does not compile"),
        (bombs::functions(19, &bombs::slow_body(500 << 10)), "compiling it took more than"),
        (vec![0x5a; 9 << 20], "expected a WebAssembly component"),
        (truncated[..truncated.len() / 2].to_vec(), "it does not compile"),
    ];
    for (number, (wasm, why)) in cases.iter().enumerate() {
        put(&file(&world), wasm)?;
        let line = said(&running.service, REFUSED, number + 1).await?;
        let reason = line["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with(why), "{line}");
    }
    let after = resident(running.service.pid().context("it runs")?)?;
    assert!(after < before + (50 << 20), "{before} → {after} bytes");
    assert_eq!(running.version_of_a_mail().await?, stamp(0));
    put(&file(&world), &version(1)?)?;
    said(&running.service, LIVE, 2).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(1));
    assert_eq!(lines(&running.service, REFUSED).len(), cases.len());
    Ok(())
}
