// Endless rows of balls or blocks, seen in passing.
float solid(vec3 q) {
    vec3 cell = floor(q + 0.5);
    vec3 f = q - cell;
    float ball = length(f) - between(0, 0.2, 0.4);
    vec3 d = abs(f) - between(1, 0.1, 0.3);
    return random(2) < 0.5 ? ball : max(d.x, max(d.y, d.z));
}

void mainImage(out vec4 colour, in vec2 at) {
    vec3 ray = normalize(vec3(centred(at), between(3, 0.8, 1.6)));
    ray.xz = turn(0.3 * iTime + TAU * random(4)) * ray.xz;
    ray.xy = turn(TAU * random(5)) * ray.xy;
    vec3 eye = vec3(0.5, 0.5, 0.5 + iTime * 0.5);
    float far = 0.0, step_ = 1.0;
    for (int k = 0; k < 26 && step_ > 0.01; k++) {
        step_ = solid(eye + ray * far);
        far += 0.9 * step_;
    }
    vec3 hit = eye + ray * far, cell = floor(hit + 0.5);
    vec2 e = vec2(0.02, 0);
    float here = solid(hit);
    vec3 normal = normalize(vec3(solid(hit + e.xyy), solid(hit + e.yxy), solid(hit + e.yyx)) - here + 1e-5);
    vec3 own = palette(dice(cell.xy + 17.0 * cell.z));
    colour = vec4(mix(ink(6), own * (0.3 + 0.8 * abs(dot(normal, normalize(vec3(1, 2, -1.5))))),
        exp(-0.25 * far)), 1);
}
