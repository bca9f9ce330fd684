use super::*;

/// How long it takes until so many pieces of work have had their turns, one after the other.
async fn take(pace: &Pace, tenant: &str, count: u32, used: Used) -> Duration {
    let began = Instant::now();
    for _ in 0..count {
        let turn = pace.turn(tenant, false).await;
        pace.used(tenant, turn, used);
    }
    began.elapsed()
}

fn about(took: Duration, expected: Duration) {
    let (least, most) = (expected.saturating_sub(SAVED_MAX).mul_f32(0.9), expected.mul_f32(1.1) + SAVED_MAX);
    assert!(took >= least && took <= most, "{took:?}, expected about {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn who_is_alone_waits_for_nothing() {
    let pace = Pace::new(2, Load::default(), CancellationToken::new());
    let used = Used { invocations: 1, cpu: Duration::from_secs(1), ..Used::default() };
    assert_eq!(take(&pace, "a", 1_000, used).await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn in_company_each_has_its_part_of_the_machine() {
    for processors in [1, 2, 16] {
        let pace = Pace::new(processors, Load::default(), CancellationToken::new());
        let per_processor = |seconds: u64| Duration::from_secs(seconds) / u32::try_from(processors).unwrap();
        pace.saw("b");
        let many = Used { invocations: 1, ..Used::default() };
        about(take(&pace, "a", 2_000, many).await, per_processor(5));
        pace.saw("b");
        let unasked = Used { deliveries: 1, ..Used::default() };
        about(take(&pace, "a", 4_000, unasked).await, per_processor(5));
        pace.saw("b");
        let long = Used { cpu: Duration::from_millis(50), ..Used::default() };
        about(take(&pace, "a", 40, long).await, per_processor(8));
        pace.saw("b");
        let large = Used { bytes: (1 << 20) + USUAL_BYTES, ..Used::default() };
        about(take(&pace, "a", 8, large).await, per_processor(8));
        pace.saw("b");
        about(take(&pace, "b", 10, many).await, Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn effects_are_sent_at_the_pace_of_those_who_have_company() {
    // Those who want more than their part give way, once they have waited for a while.
    for (part, took_ms) in [(1.0, 500), (0.5, 850)] {
        let pace = Pace::new(2, Load::fixed(1.0, part), CancellationToken::new());
        let send = async |count: u32, bytes: usize| {
            let began = Instant::now();
            for _ in 0..count {
                pace.send("a", bytes, Some(false)).await;
            }
            began.elapsed()
        };
        assert_eq!(send(1_000, USUAL_BYTES).await, Duration::ZERO, "alone");
        pace.saw("b");
        about(send(800, USUAL_BYTES).await, Duration::from_millis(took_ms));
        pace.saw("b");
        // The last of them waits for three.
        about(send(4, (1 << 20) + USUAL_BYTES).await, Duration::from_millis(1_500).div_f64(part));
    }
}

#[tokio::test(start_paused = true)]
async fn who_wanted_more_while_it_was_alone_gives_way_at_once() {
    let pace = Pace::new(1, Load::fixed(1.0, 0.5), CancellationToken::new());
    for _ in 0..3 {
        tokio::time::advance(WAITS_FOR_MORE / 2).await;
        pace.send("a", 0, Some(true)).await;
    }
    pace.saw("b");
    let began = Instant::now();
    for _ in 0..400 {
        pace.send("a", 0, Some(true)).await;
    }
    let took = began.elapsed();
    assert!(took > Duration::from_millis(990), "{took:?}: nothing is saved up");
    about(took, Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn who_is_alone_and_fast_wants_no_more_than_it_has() {
    let pace = Pace::new(1, Load::fixed(1.0, 0.1), CancellationToken::new());
    for number in 0..1_000 {
        // Some have had to wait behind others for a moment.
        drop(pace.turn("a", number < 100).await);
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    pace.saw("b");
    assert!(!pace.state().gives_way("a", Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn in_company_those_who_wait_for_a_slow_server_do_not_want_more() {
    let pace = Pace::new(1, Load::fixed(1.0, 0.5), CancellationToken::new());
    pace.saw("b");
    for _ in 0..100 {
        pace.send("a", 0, Some(true)).await;
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    assert!(!pace.state().gives_way("a", Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn a_burst_beside_one_who_always_wants_more_does_not_give_way_and_is_soon_over() {
    let pace = Pace::new(1, Load::fixed(1.0, 0.1), CancellationToken::new());
    let one = Used { invocations: 1, ..Used::default() };
    let turns = async |name: &str, count: u32| {
        for _ in 0..count {
            let turn = pace.turn(name, name == "greedy").await;
            pace.used(name, turn, one);
        }
    };
    let quiet = async {
        loop {
            pace.saw("quiet");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let bursting = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let began = Instant::now();
        turns("bursting", 2_000).await;
        began.elapsed()
    };
    tokio::select! {
        () = async { tokio::join!(quiet, turns("greedy", u32::MAX)); } => unreachable!("they go on"),
        took = bursting => about(took, Duration::from_secs(5)),
    }
    assert!(pace.state().gives_way("greedy", Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn who_is_alone_again_waits_no_longer() {
    let pace = Pace::new(1, Load::default(), CancellationToken::new());
    pace.saw("b");
    let long = Used { cpu: COUNTED_MAX, ..Used::default() };
    let began = Instant::now();
    let all = (0..100).map(async |_| {
        let turn = pace.turn("a", false).await;
        pace.used("a", turn, long);
    });
    take(&pace, "a", 8, long).await;
    pace.saw("b");
    futures_util::future::join_all(all).await;
    assert!(began.elapsed() < fair::REMEMBERED * 3, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn those_under_way_at_the_same_time_are_counted_as_what_they_are_thought_to_take() {
    let pace = Pace::new(1, Load::default(), CancellationToken::new());
    pace.saw("b");
    let used = Used { invocations: 1, cpu: Duration::from_millis(50), ..Used::default() };
    take(&pace, "a", 30, used).await;
    pace.saw("b");
    let began = Instant::now();
    let all = (0..10).map(async |_| {
        let turn = pace.turn("a", false).await;
        tokio::time::sleep(Duration::from_secs(9)).await;
        pace.used("a", turn, used);
        began.elapsed() - Duration::from_secs(9)
    });
    let began_after = futures_util::future::join_all(all).await;
    about(began_after.into_iter().max().unwrap_or_default(), Duration::from_millis(205 * 9));
}

#[tokio::test(start_paused = true)]
async fn of_many_large_ones_at_the_same_time_each_waits_for_those_before_it() {
    let pace = Pace::new(1, Load::default(), CancellationToken::new());
    pace.saw("b");
    let began = Instant::now();
    let all = (0..4).map(async |_| {
        pace.write("a", (1 << 20) + USUAL_BYTES).await;
        began.elapsed()
    });
    for (number, began_after) in (0..).zip(futures_util::future::join_all(all).await) {
        about(began_after, Duration::from_secs(number));
    }
    pace.write("a", USUAL_BYTES).await;
    about(began.elapsed(), Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn parts_are_as_large_as_the_machine_has_room_except_for_bytes() {
    let pace = Pace::new(1, Load::fixed(8.0, 8.0), CancellationToken::new());
    let (one, large) = (Used { invocations: 1, ..Used::default() }, (1 << 20) + USUAL_BYTES);
    pace.saw("b");
    about(take(&pace, "a", 6_400, one).await, Duration::from_secs(2));
    pace.saw("b");
    let began = Instant::now();
    for _ in 0..3 {
        pace.write("c", large).await;
    }
    about(began.elapsed(), Duration::from_secs(2));
}

/// In how many of a hundred looks the machine is full, and how long one at a fifth of it waits at most, beside one who fills
/// it with so few pieces at a time that none ever seems to wait, and pauses now and then for long enough to be forgotten.
async fn beside_one_who_fills_the_machine(pause_every: Duration) -> (usize, Duration) {
    const LOOKS: usize = 240;
    let pace = Pace::new(1, Load::fixed(16.0, 0.25), CancellationToken::new());
    let (done, longest) = (std::cell::Cell::new(0.0), std::cell::Cell::new(Duration::ZERO));
    let (began, one) = (Instant::now(), Used { invocations: 1, ..Used::default() });
    let piece = async |name: &str, takes: Duration| {
        let turn = pace.turn(name, false).await;
        tokio::time::sleep(takes).await;
        pace.used(name, turn, one);
        done.set(done.get() + 1.0);
    };
    let greedy = async |_| loop {
        let into = Duration::from_nanos((began.elapsed().as_nanos() % pause_every.as_nanos()) as u64);
        tokio::time::sleep(Duration::from_millis(300).saturating_sub(into)).await;
        piece("greedy", Duration::from_millis(10)).await;
    };
    let modest = async {
        for number in 0.. {
            let due = began + Duration::from_secs(1) / 360 * number;
            tokio::time::sleep_until(due).await;
            piece("modest", Duration::ZERO).await;
            if began.elapsed() > Duration::from_secs(10) {
                longest.set(longest.get().max(due.elapsed()));
            }
        }
    };
    let looks = async {
        let mut full = 0;
        for _ in 0..LOOKS {
            tokio::time::sleep(LOOK_EVERY).await;
            // It can do two thousand in a second.
            let share = f64::min(done.replace(0.0) / LOOK_EVERY.as_secs_f64() / 2_000.0, 1.0);
            full += usize::from(share > 0.8);
            pace.load.look(share);
        }
        full * 100 / LOOKS
    };
    tokio::select! {
        _ = futures_util::future::join_all((0..20).map(greedy)) => unreachable!("they go on"),
        () = modest => unreachable!("it goes on"),
        full = looks => (full, longest.get()),
    }
}

#[tokio::test(start_paused = true)]
async fn who_fills_the_machine_gives_way_whatever_he_does_not_to_seem_to_want_more() {
    for pause_every_s in [2, 6, 3_600] {
        let (full, longest) = beside_one_who_fills_the_machine(Duration::from_secs(pause_every_s)).await;
        assert!(full < 40, "{pause_every_s} s: full in {full} of a hundred looks");
        assert!(longest < Duration::from_millis(100), "{pause_every_s} s: waited {longest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_wanted_more_for_longer_gives_way_to_who_begins_to_for_as_long_as_that_is_a_burst() {
    let pace = Pace::new(1, Load::fixed(1.0, 0.1), CancellationToken::new());
    let begins = Duration::from_secs(1);
    let (began, step) = (Instant::now(), Duration::from_millis(50));
    pace.saw("old");
    pace.saw("new");
    let look = |now: Instant| {
        let mut state = pace.state();
        let mut wants_more = |name: &str| state.clocks.get_mut(name).unwrap().comes(true, now, now);
        wants_more("old");
        if now >= began + begins {
            wants_more("new");
        }
        let (is_known, is_new) = (now >= began + WAITS_FOR_MORE, now < began + begins + BURST_MAX);
        assert_eq!(state.gives_way("old", now), is_known && is_new, "{:?}", now - began);
        assert!(!state.gives_way("new", now), "{:?}", now - began);
    };
    while began.elapsed() < begins + BURST_MAX * 2 {
        look(Instant::now());
        tokio::time::advance(step).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_to_write_wants_more_although_nothing_else_comes_meanwhile() {
    let pace = Pace::new(1, Load::fixed(1.0, 1.0), CancellationToken::new());
    pace.saw("b");
    let began = Instant::now();
    let write = async |number: u32| {
        tokio::time::sleep(WAITS_FOR_MORE / 2 * number).await;
        pace.write("a", (1 << 20) + USUAL_BYTES).await;
    };
    let looked = async {
        for after_s in [1, 2, 3] {
            tokio::time::sleep_until(began + Duration::from_secs(after_s)).await;
            assert!(pace.state().gives_way("a", Instant::now()), "after {after_s} s");
        }
    };
    tokio::join!(looked, futures_util::future::join_all((0..5).map(write)));
}

/// What two tenants do in a second of whom one wants so much and the other all it can get, on a machine of one processor
/// on which who gives way has so much of a part.
async fn rates(wanted: f64, part: f64) -> (f64, f64) {
    let pace = Pace::new(1, Load::fixed(1.0, part), CancellationToken::new());
    let (greedy, modest) = (std::cell::Cell::new(0.0), std::cell::Cell::new(0.0));
    let one = Used { invocations: 1, ..Used::default() };
    let tenant = async |name: &str, done: &std::cell::Cell<f64>, per_second: f64| {
        let mut beat = tokio::time::interval(Duration::from_secs(1).div_f64(per_second));
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            let turn = pace.turn(name, name == "greedy").await;
            if name == "greedy" {
                // A large one that does not wait does not say that nothing waits.
                pace.write(name, USUAL_BYTES + 1).await;
            }
            pace.used(name, turn, one);
            done.set(done.get() + 1.0);
        }
    };
    let measured = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let before = (greedy.get(), modest.get());
        tokio::time::sleep(Duration::from_secs(10)).await;
        ((greedy.get() - before.0) / 10.0, (modest.get() - before.1) / 10.0)
    };
    let (all, some) = (tenant("greedy", &greedy, 900.0), tenant("modest", &modest, wanted));
    tokio::select! {
        () = async { tokio::join!(all, some); } => unreachable!("they go on"),
        measured = measured => measured,
    }
}

#[tokio::test(start_paused = true)]
async fn who_wants_more_gives_way_to_those_who_do_not() {
    for (wanted, part, greedy, modest) in
        [(10.0, 1.0, 400.0, 10.0), (10.0, 0.5, 200.0, 10.0), (280.0, 0.5, 200.0, 280.0), (900.0, 0.5, 400.0, 400.0)]
    {
        let (is_greedy, is_modest) = rates(wanted, part).await;
        let near = |is: f64, expected: f64| (is - expected).abs() <= expected * 0.03;
        assert!(
            near(is_greedy, greedy) && near(is_modest, modest),
            "{wanted} wanted, {part} of a part: {is_greedy} and {is_modest}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn only_who_has_waited_all_the_time_wants_more() {
    let mut clock = Clock::new(Instant::now());
    let mut comes = async |waits: bool, after_ms: u64| {
        tokio::time::advance(Duration::from_millis(after_ms)).await;
        clock.comes(waits, Instant::now(), Instant::now());
        clock.wants_more_since(Instant::now()).is_some()
    };
    assert!(!comes(true, 0).await && !comes(true, 40).await && !comes(true, 40).await);
    assert!(comes(true, 40).await, "for more than a tenth of a second");
    assert!(comes(false, 10).await && comes(true, 10).await, "there was one that waited for nothing");
    assert!(!comes(false, 21).await && !comes(true, 1).await, "and then none waited");
    assert!(!comes(true, 5_000).await, "and one long after it begins anew");
}

#[tokio::test(start_paused = true)]
async fn what_counts_is_bounded_whatever_was_used_and_however_many_are_under_way() {
    let pace = Pace::new(1, Load::default(), CancellationToken::new());
    pace.saw("b");
    let boundless = Used {
        deliveries: u32::MAX,
        invocations: u32::MAX,
        effects: u32::MAX,
        cpu: Duration::from_secs(u64::from(u32::MAX)),
        bytes: usize::MAX,
    };
    about(take(&pace, "a", 3, boundless).await, COUNTED_MAX * 2);
    pace.saw("b");
    let began = Instant::now();
    futures_util::future::join_all((0..4).map(async |_| drop(pace.turn("a", false).await))).await;
    let mean = COUNTED_MAX.mul_f32(1.0 - 0.875_f32.powi(3));
    about(began.elapsed(), COUNTED_MAX + mean * 3);
}

#[tokio::test(start_paused = true)]
async fn once_it_is_to_stop_nobody_waits() {
    let stop = CancellationToken::new();
    let pace = Pace::new(1, Load::default(), stop.clone());
    pace.saw("b");
    let large = Used { bytes: 2 << 20, ..Used::default() };
    take(&pace, "a", 2, large).await;
    let began = Instant::now();
    tokio::join!(async { drop(pace.turn("a", false).await) }, async { stop.cancel() });
    take(&pace, "a", 100, large).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// One comes each so often beside one who is content; how long the last ones waited, after a stall of the machine.
async fn wait_after_a_stall(every: Duration, takes: Duration, stall: Duration, part: f64) -> Duration {
    let pace = Pace::new(1, Load::fixed(1.0, part), CancellationToken::new());
    let one = Used { invocations: 1, cpu: takes, ..Used::default() };
    let (began, longest) = (Instant::now(), std::cell::Cell::new(Duration::ZERO));
    let (before, all) = (Duration::from_secs(20), Duration::from_secs(40));
    let comes = async |number: u32| {
        let due = began + every * number;
        tokio::time::sleep_until(due).await;
        if due > began + before {
            tokio::time::sleep_until(began + before + stall).await;
        }
        let turn = pace.turn("a", false).await;
        pace.used("a", turn, one);
        if due > began + all - Duration::from_secs(5) {
            longest.set(longest.get().max(due.elapsed()));
        }
    };
    let content = async {
        loop {
            pace.saw("b");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let many = u32::try_from(all.as_millis() / every.as_millis()).unwrap();
    tokio::select! {
        () = content => unreachable!("it goes on"),
        _ = futures_util::future::join_all((0..many).map(comes)) => longest.get(),
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_held_up_for_a_moment_makes_up_for_it_on_a_machine_that_is_full() {
    for (every_ms, takes_ms) in [(5, 0), (500, 50)] {
        let (every, takes) = (Duration::from_millis(every_ms), Duration::from_millis(takes_ms));
        let longest = wait_after_a_stall(every, takes, Duration::from_secs(1), 0.1).await;
        assert!(longest < Duration::from_millis(300), "{longest:?}: {every_ms} ms, {takes_ms} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_usual_before_one_wanted_more_counts_for_a_while_only() {
    let (mut clock, part) = (Clock::new(Instant::now()), Duration::from_secs(1));
    for _ in 0..60 {
        clock.uses(part / 2, Instant::now());
        tokio::time::advance(part).await;
    }
    assert!((clock.usual_part() - 0.5).abs() < 0.05, "{}", clock.usual_part());
    for _ in 0..600 {
        clock.comes(true, Instant::now(), Instant::now());
        clock.uses(part / 2, Instant::now());
        tokio::time::advance(part / 20).await;
    }
    assert!(clock.usual_part() < 0.05, "{}", clock.usual_part());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_few_pieces_that_take_long_does_not_want_more() {
    let mut clock = Clock::new(Instant::now());
    clock.mean = Duration::from_millis(50);
    for after_ms in [0, 100, 100, 100, 99] {
        tokio::time::advance(Duration::from_millis(after_ms)).await;
        clock.comes(true, Instant::now(), Instant::now());
        assert!(clock.wants_more_since(Instant::now()).is_none(), "of 50 ms each");
    }
    tokio::time::advance(Duration::from_millis(1)).await;
    clock.comes(true, Instant::now(), Instant::now());
    assert!(clock.wants_more_since(Instant::now()).is_some());
}
