import java.util.concurrent.atomic.AtomicLong;

/** Usage: Allocate THREADS BLOCKS. Each thread allocates that many arrays and keeps the last few thousand. */
public class Allocate {
    public static void main(String[] words) throws InterruptedException {
        int threads = Integer.parseInt(words[0]);
        long blocks = Long.parseLong(words[1]);
        AtomicLong total = new AtomicLong();
        Thread[] all = new Thread[threads];
        long start = System.nanoTime();
        for (int i = 0; i < threads; i++) {
            all[i] = new Thread(() -> {
                Object[] kept = new Object[4096];
                long made = 0;
                for (long n = 0; n < blocks; n++) {
                    byte[] block = new byte[64 + (int) (n % 960)];
                    block[0] = 1;
                    kept[(int) (n % kept.length)] = block;
                    made += block[0];
                }
                total.addAndGet(made);
            });
            all[i].start();
        }
        for (Thread one : all)
            one.join();
        System.out.println("operations=" + total.get() + " elapsed_ns=" + (System.nanoTime() - start));
    }
}
