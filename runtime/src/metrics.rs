//! The service's figures: counted where things happen, read by `admin`. Every label has a bounded set of values.

use std::time::Duration;

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::store::Figures;

/// All figures of one service.
pub struct Metrics {
    registry: Registry,
    deliveries: IntCounterVec,
    invocations: IntCounterVec,
    invocation_seconds: HistogramVec,
    swaps: IntCounterVec,
    quarantined: IntGauge,
    attempts: IntCounterVec,
    effects: IntGaugeVec,
    oldest_pending_seconds: IntGauge,
    in_doubt: IntGauge,
    suspended: IntGauge,
    refused: IntGauge,
    problems: IntGauge,
    queue_depth: IntGaugeVec,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// Nobody asked to hear about it.
    Unasked,
    /// Its plugins ran.
    Planned,
    /// It had been handled before.
    Duplicate,
    /// It is handled again later.
    Deferred,
    /// Its event never will be handled.
    Dead,
    /// It was no event.
    Malformed,
}

/// What became of a plugin's file that came while the service ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapOutcome {
    /// It runs.
    Live,
    /// It cannot run; what ran before still does.
    Refused,
}

impl Metrics {
    /// Figures that all stand at zero.
    ///
    /// # Errors
    /// When two of them have the same name, which a test would have seen.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("pulse_notifier".into()), None)?;
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let seconds = HistogramOpts::new("invocation_seconds", "Processor time of one plugin invocation.")
            .buckets(vec![0.000_01, 0.000_03, 0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0]);
        let invocation_seconds = HistogramVec::new(seconds, &["plugin"])?;
        registry.register(Box::new(invocation_seconds.clone()))?;
        let build = gauges("build_info", "The version that runs; always 1.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            deliveries: counters("deliveries_total", "Deliveries by what became of them.", &["tenant", "outcome"])?,
            invocations: counters(
                "invocations_total",
                "Plugin invocations by how they ended.",
                &["tenant", "plugin", "outcome"],
            )?,
            invocation_seconds,
            swaps: counters(
                "plugin_swaps_total",
                "Plugin files that came while running, by what became of them.",
                &["plugin", "outcome"],
            )?,
            quarantined: gauge("quarantined_plugins", "Plugins that are not run because they faulted too often.")?,
            attempts: counters(
                "attempts_total",
                "Attempts by capability and kind of answer.",
                &["tenant", "capability", "answer"],
            )?,
            effects: gauges(
                "effects",
                "Effects in states that may need a person, and those on their way.",
                &["state"],
            )?,
            oldest_pending_seconds: gauge("oldest_pending_effect_seconds", "Age of the oldest effect on its way.")?,
            in_doubt: gauge("effects_in_doubt", "Effects with an attempt whose end nobody knows.")?,
            suspended: gauge("suspended_destinations", "Destinations that wait for a person to mend something.")?,
            refused: gauge("refused_plugins", "Plugins that do not run, or not in the version their file holds.")?,
            problems: gauge(
                "config_problems",
                "What is wrong with the configuration as it is now: an earlier one runs.",
            )?,
            queue_depth: gauges("source_queue_messages", "Messages that wait in a tenant's queue.", &["tenant"])?,
            registry,
        })
    }

    /// Counts a delivery.
    pub fn delivery(&self, tenant: &str, outcome: DeliveryOutcome) {
        self.deliveries.with_label_values(&[tenant, outcome.name()]).inc();
    }

    /// Counts an invocation by the state it was recorded in.
    pub fn invocation(&self, tenant: &str, plugin: &str, outcome: &str, cpu: Duration) {
        self.invocations.with_label_values(&[tenant, plugin, outcome]).inc();
        self.invocation_seconds.with_label_values(&[plugin]).observe(cpu.as_secs_f64());
    }

    /// Counts a plugin's file by what became of it.
    pub fn swap(&self, plugin: &str, outcome: SwapOutcome) {
        self.swaps.with_label_values(&[plugin, outcome.name()]).inc();
    }

    /// Notes how many plugins are in quarantine.
    pub fn quarantined(&self, plugins: usize) {
        self.quarantined.set(i64::try_from(plugins).unwrap_or(i64::MAX));
    }

    /// Counts an attempt by the kind of its answer.
    pub fn attempt(&self, tenant: &str, capability: &str, answer: &str) {
        self.attempts.with_label_values(&[tenant, capability, answer]).inc();
    }

    /// Notes how many plugins are refused, and how much is wrong with the configuration.
    pub fn waits_for_a_person(&self, refused: usize, problems: usize) {
        self.refused.set(i64::try_from(refused).unwrap_or(i64::MAX));
        self.problems.set(i64::try_from(problems).unwrap_or(i64::MAX));
    }

    /// Notes how many messages wait in a tenant's queue.
    pub fn queue_depth(&self, tenant: &str, messages: u32) {
        self.queue_depth.with_label_values(&[tenant]).set(messages.into());
    }

    /// Nobody looks at a tenant's queue any more.
    pub fn forget_queue(&self, tenant: &str) {
        // It may never have been looked at.
        drop(self.queue_depth.remove_label_values(&[tenant]));
    }

    /// All figures as text, those that the database counts included.
    ///
    /// # Errors
    /// When a figure cannot be written.
    pub fn render(&self, figures: &Figures) -> Result<String, prometheus::Error> {
        for (state, count) in &figures.effects {
            self.effects.with_label_values(&[state]).set(*count);
        }
        self.oldest_pending_seconds.set(figures.oldest_pending_ms / 1_000);
        self.in_doubt.set(figures.in_doubt);
        self.suspended.set(i64::try_from(figures.suspended.len()).unwrap_or(i64::MAX));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

impl DeliveryOutcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Unasked => "unasked",
            Self::Planned => "planned",
            Self::Duplicate => "duplicate",
            Self::Deferred => "deferred",
            Self::Dead => "dead",
            Self::Malformed => "malformed",
        }
    }
}

impl SwapOutcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Refused => "refused",
        }
    }
}
