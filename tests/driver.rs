//! What the host side asks of a CUDA driver, and in which order: threads with streams of their own, captures into graphs, a device that others use, too,
//! calls counted: `sh tests/emulator/run.sh cargo test --release --features cuda --test driver`.
#![cfg(feature = "cuda")]
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor, Var};
use candle_margin_loss::{LabelCheck, LossOutput, MarginLoss, MarginLossBuilder};
use common::{Inputs, Result, builders, distance, flat, fused, off_tape, size};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

unsafe extern "C" {
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// This thread's calls of the driver so far; None on a driver that does not count them.
fn calls() -> Option<BTreeMap<String, u64>> {
    // SAFETY: a name that ends with NUL; null stands for everything that is loaded
    let counts = unsafe { dlsym(std::ptr::null_mut(), c"emulatedDriverCalls".as_ptr()) };
    if counts.is_null() {
        return None;
    }
    // SAFETY: the emulated driver's function of this name
    let counts: extern "C" fn(*mut c_char, usize) -> usize = unsafe { std::mem::transmute(counts) };
    let mut text = vec![0u8; counts(std::ptr::null_mut(), 0)];
    counts(text.as_mut_ptr().cast(), text.len());
    let text = String::from_utf8_lossy(&text);
    let pair =
        |line: &str| line.trim_end_matches('\0').split_once(' ').map(|(name, n)| (name.into(), n.parse().unwrap()));
    Some(text.lines().filter_map(pair).collect())
}

/// What `work` adds to the counts.
fn count(work: impl FnOnce() -> Result<()>) -> Result<Option<BTreeMap<String, u64>>> {
    let Some(before) = calls() else { return Ok(None) };
    work()?;
    let mut after = calls().ok_or("counts")?;
    for (name, n) in &mut after {
        *n -= before.get(name).copied().unwrap_or(0);
    }
    after.retain(|_, n| *n > 0);
    Ok(Some(after))
}

fn dbm(c: usize) -> Result<MarginLossBuilder> {
    Ok(builders(c).into_iter().find(|(name, _)| *name == "DBM-BS").ok_or("no such loss")?.1)
}

fn inputs(n: usize, c: usize, d: usize, seed: u64) -> Result<Inputs> {
    Inputs::random(n, c, d, false, seed)?.to(DType::F32)
}

/// Sizes of one block, of a cooperative grid, and with sums that are split.
const SIZES: [(usize, usize, usize); 3] = [(9, 12, 7), (70, 130, 40), (5, 1500, 20)];

/// After the first calls nothing is asked about the device or by name, and little memory is asked for.
#[test]
fn a_step_asks_little_of_the_driver() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    for (n, c, d) in SIZES {
        for (streaming, keep) in [(false, true), (false, false), (true, true), (true, false)] {
            let loss = dbm(c)?.streaming(streaming).keep_workspace(keep).check_labels(false).build()?;
            let inputs = inputs(n, c, d, 3)?.on(&gpu)?;
            let (dx, dw) = (inputs.x.zeros_like()?, inputs.w.zeros_like()?);
            let step = || loss.loss_and_grads_into(&inputs.x, &inputs.w, &inputs.y, None, &dx, &dw);
            let first = flat(&step()?.loss);
            let mut second: Option<LossOutput> = None;
            let counted = count(|| {
                second = Some(step()?);
                Ok(())
            })?;
            let Some(mut counted) = counted else {
                println!("SKIPPED: the driver does not count its calls");
                return Ok(());
            };
            assert_eq!(flat(&second.ok_or("a step")?.loss), first);
            counted.remove("cuCtxGetCurrent"); // the thread's own, which every call of cudarc's asks for
            let label = format!("{n} x {c} x {d}, streaming {streaming}, workspace kept {keep}");
            println!("{label}: {counted:?}");
            let mut of = |name: &str| counted.remove(name).unwrap_or(0);
            let launches = of("cuLaunchKernel") + of("cuLaunchCooperativeKernel");
            let (allocated, freed, zeroed) = (of("cuMemAllocAsync"), of("cuMemFreeAsync"), of("cuMemsetD8Async"));
            assert!(launches <= if streaming { 3 } else { 1 }, "{label}: {launches} launches");
            // Outputs of three types, and the workspace.
            assert_eq!((allocated, freed), (3 + u64::from(!keep), u64::from(!keep)), "{label}");
            assert!(zeroed <= 1 + u64::from(streaming), "{label}: {zeroed} memsets");
            // Candle's tensors have events, which they are made with.
            let events = of("cuEventCreate");
            assert_eq!(events, 2 * 3, "{label}");
            assert!(counted.is_empty(), "{label}: {counted:?}");
        }
    }
    Ok(())
}

/// Several threads that come to a new device and a new loss at once, each on a stream of its own.
#[test]
fn threads_that_come_at_once() -> Result<()> {
    let _alone = alone();
    let (n, c, d) = (70, 130, 40);
    let inputs = inputs(n, c, d, 5)?;
    let expected = off_tape(&dbm(c)?.build()?, &inputs.on(&Device::Cpu)?)?;
    for _ in 0..4 {
        let (gpu, loss) = (Device::new_cuda(0)?, dbm(c)?.check_labels(false).build()?);
        let ready = Barrier::new(3);
        let step = || -> Result<(Vec<f64>, u64)> {
            let inputs = inputs.on(&gpu)?;
            ready.wait();
            let mut loads = 0;
            let mut found = Vec::new();
            let counted = count(|| {
                found = off_tape(&loss, &inputs)?.dw;
                Ok(())
            })?;
            loads += counted.and_then(|counted| counted.get("cuModuleLoadData").copied()).unwrap_or(0);
            if found.is_empty() {
                found = off_tape(&loss, &inputs)?.dw;
            }
            Ok((found, loads))
        };
        let found = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| step().map_err(|error| error.to_string()))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let mut loads = 0;
        for found in found {
            let (dw, loaded) = found?;
            assert!(distance(&dw, &expected.dw) <= 1e-4 * size(&expected.dw));
            loads += loaded;
        }
        assert!(loads <= 1, "a module is loaded once for a device, not {loads} times");
    }
    Ok(())
}

/// To wait for a device would break another test's capture.
static CAPTURES: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    CAPTURES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one thread has put on the device is there for another, whose stream does not wait for the first one's; and stays until the other's is done.
#[test]
fn tables_outlive_their_uploads_and_their_uses() -> Result<()> {
    let _alone = alone();
    let (n, c, d) = (9, 12, 7);
    let gpu = Device::new_cuda(0)?;
    let inputs = inputs(n, c, d, 7)?;
    let expected = off_tape(&dbm(c)?.build()?, &inputs.on(&Device::Cpu)?)?;
    for trial in 0..20 {
        let loss = dbm(c)?.check_labels(false).keep_workspace(trial % 2 == 0).build()?;
        let here = inputs.on(&gpu)?;
        // Puts the tables there and waits for nothing.
        let first = loss.output(&here.x, &here.w, &here.y, None)?;
        let clone = loss.clone();
        let (dropped, launched) = (Barrier::new(2), Barrier::new(2));
        let there = std::thread::scope(|scope| {
            let other = scope.spawn(|| -> std::result::Result<Vec<f64>, String> {
                let step = || -> Result<Tensor> {
                    let there = inputs.on(&gpu)?;
                    let (_, _, dw) = clone.loss_and_grads(&there.x, &there.w, &there.y, None)?;
                    drop(clone);
                    Ok(dw)
                };
                let dw = step().map_err(|error| error.to_string());
                launched.wait();
                dropped.wait();
                Ok(flat(&dw?))
            });
            launched.wait();
            drop(loss); // the last of it, while the other's work may still wait
            dropped.wait();
            other.join().unwrap()
        })?;
        assert!(distance(&there, &expected.dw) <= 1e-4 * size(&expected.dw));
        assert!(distance(&flat(&first.per_sample), &expected.per_sample) <= 1e-4 * size(&expected.per_sample));
    }
    Ok(())
}

/// A step is captured into a graph and replayed, on a device of per-thread streams and on one with a stream of its own, whose tensors have events; and what
/// cannot be captured is refused before anything is, so that the capture goes on.
#[test]
fn captures_on_both_kinds_of_device() -> Result<()> {
    let _alone = alone();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    for own_stream in [false, true] {
        let gpu = if own_stream { Device::new_cuda_with_stream(0)? } else { Device::new_cuda(0)? };
        let device = gpu.as_cuda_device()?;
        let stream = device.cuda_stream();
        for (n, c, d) in SIZES {
            for (streaming, keep) in [(false, false), (true, true)] {
                let label = format!("own stream {own_stream}, {n} x {c} x {d}, streaming {streaming}");
                let build = |check: LabelCheck| -> Result<MarginLoss> {
                    Ok(dbm(c)?.streaming(streaming).keep_workspace(keep).check_labels(check).build()?)
                };
                let (loss, checked, heard) =
                    (build(LabelCheck::Off)?, build(LabelCheck::AtOnce)?, build(LabelCheck::Later)?);
                let batches: Vec<_> = (0..2).map(|seed| inputs(n, c, d, seed)?.on(&gpu)).collect::<Result<_>>()?;
                let first = &batches[0];
                let (x, y) = (Var::from_tensor(&first.x)?, Var::from_tensor(&first.y)?);
                let (dx, dw) = (x.zeros_like()?, first.w.zeros_like()?);
                let step = |loss: &MarginLoss| loss.loss_and_grads_into(&x, &first.w, &y, None, &dx, &dw);
                for loss in [&loss, &checked, &heard] {
                    step(loss)?;
                }
                stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
                let mut refused = Vec::new();
                if own_stream {
                    refused.push(("disable_event_tracking", step(&loss)));
                    // SAFETY: all work with the device's tensors is on its one stream
                    unsafe { device.disable_event_tracking() };
                }
                refused.push(("check_labels(false)", step(&checked)));
                refused.push(("check_labels(false)", step(&heard)));
                refused.push(("make one before the capture", step(&build(LabelCheck::Off)?)));
                for (why, refused) in refused {
                    let error = refused.map(|_| ()).unwrap_err().to_string();
                    assert!(error.contains(why) && error.contains("captured into a graph"), "{label}: {error}");
                }
                let out = step(&loss)?;
                let graph = stream.end_capture(flags)?.ok_or("an empty graph")?;
                for batch in &batches {
                    x.set(&batch.x)?;
                    y.set(&batch.y)?;
                    graph.launch()?;
                    let found = [flat(&out.loss), flat(&out.per_sample), flat(&dx), flat(&dw)];
                    let (expected, dx, dw) = loss.loss_and_grads(&batch.x, &first.w, &batch.y, None)?;
                    let expected = [flat(&expected.loss), flat(&expected.per_sample), flat(&dx), flat(&dw)];
                    assert_eq!(found, expected, "{label}");
                }
                if own_stream {
                    stream.synchronize()?;
                    // SAFETY: what was made without events is not used on another stream
                    unsafe { stream.context().enable_event_tracking() };
                }
            }
        }
    }
    Ok(())
}

/// Threads on a device with one stream for all of them, with a loss that keeps its workspace: what one call has put into the stream and is still to read
/// is not the next one's.
#[test]
fn threads_share_a_stream_and_a_workspace() -> Result<()> {
    let _alone = alone();
    let gpu = Device::new_cuda_with_stream(0)?;
    let (n, c, d) = (5, 1500, 20);
    let loss = dbm(c)?.streaming(true).keep_workspace(true).check_labels(false).build()?;
    let work = |seed: u64| -> Result<()> {
        let inputs = inputs(n, c, d, seed)?;
        let expected = off_tape(&loss, &inputs.on(&Device::Cpu)?)?;
        let there = inputs.on(&gpu)?;
        for _ in 0..8 {
            let found = off_tape(&loss, &there)?;
            assert!(distance(&found.dx, &expected.dx) <= 1e-4 * size(&expected.dx));
            assert!(distance(&found.dw, &expected.dw) <= 1e-4 * size(&expected.dw));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads = [1, 2, 3].map(|seed| scope.spawn(move || work(seed).map_err(|error| error.to_string())));
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    Ok(())
}

/// Runs the test `name` again in a process of its own, with what the emulated driver is told by `variables`; None in that process, or where the driver is
/// another one.
fn in_a_process_of_its_own(name: &str, variables: &[(&str, &str)]) -> Result<Option<String>> {
    if calls().is_none() {
        println!("SKIPPED: the driver cannot be told so");
        return Ok(Some(String::new()));
    }
    if std::env::var_os("MARGIN_LOSS_CHILD").is_some() {
        return Ok(None);
    }
    let child = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", name, "--nocapture"])
        .env("MARGIN_LOSS_CHILD", "1")
        .envs(variables.iter().copied())
        .output()?;
    let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
    Ok(Some(text))
}

/// One loss on two devices, in turn by one thread and at once by two: each device has its tables, kernels and workspaces.
#[test]
fn one_loss_on_two_devices() -> Result<()> {
    if in_a_process_of_its_own("one_loss_on_two_devices", &[("PTX_EMULATOR_DEVICES", "2")])?.is_some() {
        return Ok(());
    }
    // cudarc frees into the stream of the handle: with per-thread streams, which all have the same, another device's.
    let devices = [Device::new_cuda_with_stream(0)?, Device::new_cuda_with_stream(1)?];
    for (n, c, d) in SIZES {
        let inputs = inputs(n, c, d, 17)?;
        for streaming in [false, true] {
            let loss = dbm(c)?.streaming(streaming).keep_workspace(true).check_labels(LabelCheck::Later).build()?;
            let expected = off_tape(&loss, &inputs.on(&Device::Cpu)?)?;
            let there: Vec<_> = devices.iter().map(|device| inputs.on(device)).collect::<Result<_>>()?;
            let step = |at: usize| -> std::result::Result<Vec<f64>, String> {
                let found = off_tape(&loss, &there[at]).map_err(|error| error.to_string())?;
                assert!(distance(&found.dw, &expected.dw) <= 1e-4 * size(&expected.dw));
                // On the tape, its backward pass and the scaling of its gradients.
                let tape = fused(&loss, &there[at], None).map_err(|error| error.to_string())?;
                assert!(distance(&tape.dx, &expected.dx) <= 1e-4 * size(&expected.dx));
                Ok(found.dw)
            };
            let first = step(0)?;
            for at in [1, 0, 1, 0] {
                assert_eq!(step(at)?, first, "the same device twice: the same bits");
            }
            std::thread::scope(|scope| {
                let step = &step;
                let both = [0, 1, 0].map(|at| scope.spawn(move || step(at)));
                both.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap().unwrap(), first));
            });
            loss.check_calls()?;
            let mixed = loss.forward(&there[0].x, &there[1].w, &there[0].y).unwrap_err().to_string();
            assert!(mixed.contains("Cuda { gpu_id: 0 }") && mixed.contains("Cuda { gpu_id: 1 }"), "{mixed}");
        }
    }
    Ok(())
}

/// A device that refuses cooperative launches, as one does that others use, too: the streaming kernels take over, and it is not asked again. In a process of
/// its own.
#[test]
fn a_cooperative_launch_that_is_refused() -> Result<()> {
    let (n, c, d) = (70, 130, 40);
    let refuse = [("PTX_EMULATOR_COOPERATIVE", "refuse")];
    if in_a_process_of_its_own("a_cooperative_launch_that_is_refused", &refuse)?.is_some() {
        return Ok(());
    }
    let gpu = Device::new_cuda(0)?;
    let inputs = inputs(n, c, d, 11)?;
    let (there, here) = (inputs.on(&gpu)?, inputs.on(&Device::Cpu)?);
    let mut asked = 0;
    for round in 0..3 {
        // Another loss does not ask again, either.
        let loss = dbm(c)?.keep_workspace(round == 1).build()?;
        let expected = off_tape(&loss, &here)?;
        let streaming = off_tape(&dbm(c)?.streaming(true).build()?, &there)?;
        let counted = count(|| {
            let found = off_tape(&loss, &there)?;
            for ((what, found), (_, same)) in found.parts().into_iter().zip(streaming.parts()) {
                assert_eq!(found, same, "{what} is the streaming kernels'");
            }
            assert!(distance(&found.dw, &expected.dw) <= 1e-4 * size(&expected.dw));
            Ok(())
        })?;
        asked += counted.ok_or("counts")?.get("cuLaunchCooperativeKernel").copied().unwrap_or(0);
    }
    assert_eq!(asked, 1);
    // One block needs nobody's leave.
    let few = self::inputs(9, 12, 7, 12)?.on(&gpu)?;
    let loss = dbm(12)?.check_labels(false).build()?;
    let counted = count(|| Ok(loss.loss_and_grads(&few.x, &few.w, &few.y, None).map(|_| ())?))?.ok_or("counts")?;
    let launches = ["cuLaunchKernel", "cuLaunchCooperativeKernel"].map(|name| counted.get(name).copied());
    assert_eq!(launches, [Some(1), None], "{counted:?}");
    Ok(())
}

/// With [`LabelCheck::Later`] no call waits, and a later one has the error: the same error, of the first call that had one.
#[test]
fn errors_that_are_heard_later() -> Result<()> {
    let (n, c, d) = (9, 12, 7);
    let gpu = Device::new_cuda(0)?;
    let good = inputs(n, c, d, 13)?.with_sample_weights(3)?.on(&gpu)?;
    let bad_label = |row: usize| -> Result<Inputs> {
        let mut y = good.y.to_vec1::<i64>()?;
        y[row] = c as i64 + row as i64;
        Ok(Inputs { y: Tensor::new(y, &gpu)?, ..good.clone() })
    };
    let (bad, worse) = (bad_label(3)?, bad_label(5)?);
    let mut weights = flat(good.sample_weights.as_ref().ok_or("weights")?);
    weights[2] = -1.0;
    let light = Inputs { sample_weights: Some(Tensor::new(weights, &gpu)?), ..good.clone() };
    let loss = dbm(c)?.check_labels(LabelCheck::Later).build()?;
    let at_once = dbm(c)?.build()?;
    let call = |loss: &MarginLoss, inputs: &Inputs| {
        loss.loss_and_grads(&inputs.x, &inputs.w, &inputs.y, inputs.sample_weights.as_ref()).map(|(out, ..)| out)
    };
    // Candle adds where it was to what it was.
    let text = |error: &dyn std::error::Error| error.to_string().lines().next().unwrap_or_default().to_string();
    let message = |inputs: &Inputs| text(&call(&at_once, inputs).map(|_| ()).unwrap_err());

    // By a later call or on demand: the first error first, then the next, then none.
    let mut heard = Vec::new();
    for inputs in [&good, &bad, &good, &worse, &light] {
        while let Err(error) = call(&loss, inputs) {
            heard.push(text(&error));
        }
    }
    while let Err(error) = loss.check_calls() {
        heard.push(text(&error));
    }
    assert_eq!(heard, [message(&bad), message(&worse), message(&light)]);
    loss.check_calls()?;

    // By a later call, once the device has come to it.
    let out = call(&loss, &bad)?;
    assert!(flat(&out.per_sample)[3].is_nan(), "which has waited for it");
    assert_eq!(text(&call(&loss, &good).map(|_| ()).unwrap_err()), message(&bad));
    call(&loss, &good)?;
    loss.check_calls()?;

    // No call waits, and many are remembered.
    let counted = count(|| {
        for _ in 0..100 {
            call(&loss, &good)?;
        }
        Ok(())
    })?;
    if let Some(counted) = counted {
        let of = |name: &str| counted.get(name).copied().unwrap_or(0);
        assert_eq!(of("cuStreamSynchronize") + of("cuCtxSynchronize"), 0, "{counted:?}");
        assert!(of("cuMemHostAlloc") <= 65, "{counted:?}");
    }
    loss.check_calls()?;
    Ok(())
}
